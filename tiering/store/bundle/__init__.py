"""A bundle of weights on flash: manifest (pure), writer, journal, reader, stripes over drives. Knows no model."""
