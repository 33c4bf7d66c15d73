"""The bundle on flash: manifest (pure), writer, reader."""
