-- When each row of the outbox was written. A poll compares it with the same clock, and so knows how long ago a change was made.
-- NULL in rows from before. The default is set apart from the column, so that the table is not rewritten.
ALTER TABLE hotshelf.outbox ADD COLUMN write_time timestamptz;
ALTER TABLE hotshelf.outbox ALTER COLUMN write_time SET DEFAULT clock_timestamp();
