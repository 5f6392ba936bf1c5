"""What a person does with an installation: see what is wrong (`doctor`), what there is (`sessions`), and tidy up (`clean`)."""
