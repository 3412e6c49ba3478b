-- Where the workers of an instance are to sit, by the owner's word (JSON).
ALTER TABLE instances ADD COLUMN placement TEXT;
