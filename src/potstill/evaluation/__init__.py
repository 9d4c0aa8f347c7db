"""Models × tasks × seeds → results, and what they say of a student beside its teacher."""
