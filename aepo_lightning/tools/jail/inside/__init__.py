"""What runs inside the jail. These files are mounted into it alone, so they import the standard library only."""
