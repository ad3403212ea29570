"""Video files: decode, read and accumulate motion vectors, re-encode, seek, stream."""
