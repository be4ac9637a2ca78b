// Checks a log with golang.org/x/mod/sumdb (note, tlog), which knows nothing of Landbridge: tlog <log> <vkey> <proofs.json>
//
//  1. the checkpoint is signed by the key
//  2. every entry, hashed anew, leads to the root of the checkpoint
//  3. every tile that a proof needs is one of this tree (tlog.TileHashReader)
//  4. the proofs of inclusion and consistency in proofs.json are right, and are those that Go makes itself
//
// It prints what it has checked as one line of JSON, or says what is wrong and exits with 1.
package main

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

const height = 8

type inclusion struct {
	Index, Size int64
	Root        tlog.Hash
	Proof       []tlog.Hash
}

type consistency struct {
	Old, Size     int64
	OldRoot, Root tlog.Hash
	Proof         []tlog.Hash
}

func must(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func check(good bool, format string, args ...interface{}) {
	if !good {
		must(fmt.Errorf(format, args...))
	}
}

// path is where tlog-tiles puts a tile: as Go does, but for the height.
func path(level, number int64, width int) string {
	name := fmt.Sprintf("%03d", number%1000)
	for rest := number / 1000; rest > 0; rest /= 1000 {
		name = fmt.Sprintf("x%03d/%s", rest%1000, name)
	}
	where := strconv.FormatInt(level, 10)
	if level < 0 {
		where = "entries"
	}
	if width < 1<<height {
		name += fmt.Sprintf(".p/%d", width)
	}
	return "tile/" + where + "/" + name
}

type tiles struct{ log string }

func (t tiles) Height() int { return height }

func (t tiles) ReadTiles(wanted []tlog.Tile) ([][]byte, error) {
	var all [][]byte
	for _, tile := range wanted {
		raw, err := os.ReadFile(filepath.Join(t.log, path(int64(tile.L), tile.N, tile.W)))
		if err != nil {
			return nil, err
		}
		all = append(all, raw)
	}
	return all, nil
}

func (t tiles) SaveTiles([]tlog.Tile, [][]byte) {}

func main() {
	log, vkey := os.Args[1], os.Args[2]

	verifier, err := note.NewVerifier(vkey)
	must(err)
	raw, err := os.ReadFile(filepath.Join(log, "checkpoint"))
	must(err)
	opened, err := note.Open(raw, note.VerifierList(verifier))
	must(err)
	lines := strings.Split(opened.Text, "\n")
	check(len(lines) == 4 && lines[0] == verifier.Name(), "the checkpoint is not of %s", verifier.Name())
	size, err := strconv.ParseInt(lines[1], 10, 64)
	must(err)
	root, err := tlog.ParseHash(lines[2])
	must(err)

	var stored []tlog.Hash
	reader := tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
		found := make([]tlog.Hash, len(indexes))
		for at, index := range indexes {
			found[at] = stored[index]
		}
		return found, nil
	})
	for index := int64(0); index < size; {
		width := size - index
		if width > 1<<height {
			width = 1 << height
		}
		bundle, err := os.ReadFile(filepath.Join(log, path(-1, index>>height, int(width))))
		must(err)
		for end := index + width; index < end; index++ {
			length := binary.BigEndian.Uint16(bundle)
			hashes, err := tlog.StoredHashes(index, bundle[2:2+length], reader)
			must(err)
			stored = append(stored, hashes...)
			bundle = bundle[2+length:]
		}
		check(len(bundle) == 0, "the bundle before entry %d has more than %d entries", index, width)
	}
	made, err := tlog.TreeHash(size, reader)
	must(err)
	check(made == root, "the entries lead to %v, and the checkpoint signs %v", made, root)

	var proofs struct {
		Inclusion   []inclusion
		Consistency []consistency
	}
	raw, err = os.ReadFile(os.Args[3])
	must(err)
	must(json.Unmarshal(raw, &proofs))
	of := tlog.TileHashReader(tlog.Tree{N: size, Hash: root}, tiles{log})
	for _, each := range proofs.Inclusion {
		leaf := stored[tlog.StoredHashIndex(0, each.Index)]
		must(tlog.CheckRecord(each.Proof, each.Size, each.Root, each.Index, leaf))
		ours, err := tlog.ProveRecord(each.Size, each.Index, of)
		must(err)
		check(len(ours) == len(each.Proof) && (len(ours) == 0 || reflect.DeepEqual([]tlog.Hash(ours), each.Proof)),
			"the proof of entry %d in %d is not Go's", each.Index, each.Size)
	}
	for _, each := range proofs.Consistency {
		must(tlog.CheckTree(each.Proof, each.Size, each.Root, each.Old, each.OldRoot))
		ours, err := tlog.ProveTree(each.Size, each.Old, of)
		must(err)
		check(len(ours) == len(each.Proof) && (len(ours) == 0 || reflect.DeepEqual([]tlog.Hash(ours), each.Proof)),
			"the proof from %d to %d is not Go's", each.Old, each.Size)
	}
	fmt.Printf(`{"entries": %d, "inclusion": %d, "consistency": %d}`+"\n", size, len(proofs.Inclusion), len(proofs.Consistency))
}
