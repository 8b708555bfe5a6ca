"""From a call to the key of its value: the name of the function, and a digest of the arguments."""
