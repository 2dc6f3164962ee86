"""JSON of any content, with the names of fields that mean something to this backend."""

from hypothesis import strategies as st

_WORDS = st.sampled_from(
    ["id", "type", "value", "rle", "brushlabels", "meta", "prompt_id", "origin", "parentID", "choices", "score"]
)
odd_json = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 2**70) | st.floats() | st.text(max_size=4) | _WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_WORDS | st.text(max_size=3), inner, max_size=4),
    max_leaves=12,
)
odd_objects = st.dictionaries(_WORDS, odd_json, max_size=6)
