package audit

import (
	"bytes"
	"errors"
	"hash/crc32"
	"math"
	"strconv"
)

// frame is one line of a segment or of the checkpoints: JSON, then index, synced and CRC.
type frame struct {
	json   []byte // exactly as written; for a record, the leaf of the tree
	index  int64  // of the record; for a segment's header, of the first record to come; for a checkpoint, the size
	synced int64  // records that were durable when the line was written
}

// maxLine is the longest line: a record, its frame of three numbers, spaces and the newline.
const maxLine = MaxRecord + 64

var errFrame = errors.New("the line is not a framed record")

// The table is a constant of the CPU's own instruction; crc32 gives it back without making it again.
func castagnoli() *crc32.Table { return crc32.MakeTable(crc32.Castagnoli) }

// appendFrame appends the line for json, whose CRC so far is sum (see frameSum), with its newline.
func appendFrame(b, json []byte, sum uint32, index, synced int64) []byte {
	b = append(b, json...)
	mark := len(b)
	b = append(b, ' ')
	b = strconv.AppendInt(b, index, 10)
	b = append(b, ' ')
	b = strconv.AppendInt(b, synced, 10)
	b = append(b, ' ')
	sum = crc32.Update(sum, castagnoli(), b[mark:])
	b = strconv.AppendUint(b, uint64(sum), 10)
	return append(b, '\n')
}

// frameSum is the part of a line's CRC that does not need its index.
func frameSum(json []byte) uint32 { return crc32.Checksum(json, castagnoli()) }

// parseFrame reads one line, given without its newline. Exactly what appendFrame writes is accepted: one spelling
// for each number, and nothing else in the line. The result aliases line.
func parseFrame(line []byte) (frame, error) {
	if len(line) >= maxLine {
		return frame{}, errFrame
	}
	rest, sum, ok := cutNumber(line)
	if !ok || sum > math.MaxUint32 || uint32(sum) != crc32.Checksum(line[:len(rest)+1], castagnoli()) {
		return frame{}, errFrame
	}
	rest, synced, ok := cutNumber(rest)
	if !ok {
		return frame{}, errFrame
	}
	rest, index, ok := cutNumber(rest)
	if !ok || synced > index || len(rest) < 2 || rest[0] != '{' || rest[len(rest)-1] != '}' || bytes.IndexByte(rest, '\n') >= 0 {
		return frame{}, errFrame
	}
	return frame{json: rest, index: index, synced: synced}, nil
}

// cutNumber splits `rest N` at the last space.
func cutNumber(line []byte) (rest []byte, n int64, ok bool) {
	i := bytes.LastIndexByte(line, ' ')
	if i < 0 {
		return nil, 0, false
	}
	digits := line[i+1:]
	if len(digits) == 0 || len(digits) > 18 || digits[0] == '0' && len(digits) > 1 {
		return nil, 0, false
	}
	for _, c := range digits {
		if c < '0' || c > '9' {
			return nil, 0, false
		}
		n = n*10 + int64(c-'0')
	}
	return line[:i], n, true
}
