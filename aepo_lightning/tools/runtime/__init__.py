"""Runs calls of any tool: deadlines, slots, retries, circuit breakers, caches, and the states of chains."""
