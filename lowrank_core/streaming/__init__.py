"""Large networks compressed block by block, from a folder of `save_pretrained` to another, weights and text streamed"""
