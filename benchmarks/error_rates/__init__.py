"""How often each test is wrong between unrelated models: uncorrected p-values, replicates of the null, and a verdict."""
