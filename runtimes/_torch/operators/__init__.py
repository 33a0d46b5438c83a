"""What computes the operators: one file per family, each entering its functions into the table."""
