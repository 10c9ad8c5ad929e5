"""Drop-ins for modules of other codebases: same names, same arguments, our kernels."""
