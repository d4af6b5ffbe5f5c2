"""What processes of one job do together: collectives, one that goes first, ranks that watch each other."""
