"""What a session remembers and what all share: these files alone touch st.session_state, st.query_params, st.cache_*.

Session state holds small frozen values; models, data and factors live in one shared, read-only workspace per model.
Every change of a plan is saved under the id in the address (?w=...), so a refresh or a restart loses nothing.
"""
