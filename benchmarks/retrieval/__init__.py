"""The retrieval benchmark: does the index propose what comparing with every registered model finds, and how fast?"""
