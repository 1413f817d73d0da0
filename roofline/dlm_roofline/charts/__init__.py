"""One file a picture, each with one public function that makes it from a record."""
