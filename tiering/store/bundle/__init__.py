"""A bundle of weights on flash: manifest (pure), writer, reader, journal, stripes over drives."""
