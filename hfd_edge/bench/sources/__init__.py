"""Where power, temperature and clocks can be read, one module a kind of machine."""
