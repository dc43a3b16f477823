"""What a scan costs beside a checksum of the same file and beside modelDNA: time, memory, bytes read; and starting."""
