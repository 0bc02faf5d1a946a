package seal

// Reblob parses a TPM's blob and writes it again.
func Reblob(text []byte) ([]byte, error) {
	b, err := parseBlob(text)
	if err != nil {
		return nil, err
	}
	return b.marshal(), nil
}
