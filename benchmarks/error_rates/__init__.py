"""How often each test is wrong between unrelated models: p-values, replicates of the null, and a verdict."""
