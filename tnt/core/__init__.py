"""What every room stands on: records, their files, hashes, params, errors, commands."""
