"""Do recent and later tokens agree on which context entries matter (PyramidInfer, section 3.2)?"""
