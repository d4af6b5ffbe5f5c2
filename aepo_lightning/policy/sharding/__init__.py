"""The network over many devices: FSDP2 and FSDP1, their options, and the builder that applies them."""
