"""Diffusion as pure maths over tensors: x_t = alpha(t) x0 + sigma(t) eps, t = 0 data, t = 1 noise."""
