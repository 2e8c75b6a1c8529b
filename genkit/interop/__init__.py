"""To and from diffusers: the same networks under other names, without depending on it."""
