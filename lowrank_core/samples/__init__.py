"""How raw samples become what a network takes: what it asks for, what is done to them, what is made of them"""
