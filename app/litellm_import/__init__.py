"""Taking over what LiteLLM's database knows: users, keys, managed files, batches and jobs."""
