package interop

import (
	"encoding/json"
	"fmt"
	"os"
	"reflect"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	topodatapb "vitess.io/vitess/go/vt/proto/topodata"
	vschemapb "vitess.io/vitess/go/vt/proto/vschema"
	workflowpb "vitess.io/vitess/go/vt/proto/workflow"
)

// sample is a record of one kind; what is edited in it reads `before`.
type sample struct {
	// As vtopo names it.
	kind       string
	cell, path string
	message    proto.Message
	json       string
	// DecodeContent knows it.
	decoded bool
}

func samples(w *world) []sample {
	return []sample{
		{"cell-info zone9", "global", "cells/zone9/CellInfo", &topodatapb.CellInfo{},
			fmt.Sprintf(`{"server_address": "%s", "root": "%s/before"}`, w.server, w.root), true},
		{"cells-alias region", "global", "cells_aliases/region/CellsAlias", &topodatapb.CellsAlias{},
			`{"cells": ["zone1", "before"]}`, false},
		{"keyspace ks", "global", "keyspaces/ks/Keyspace", &topodatapb.Keyspace{},
			`{"sidecar_db_name": "before", "durability_policy": "semi_sync",
			"snapshot_time": {"seconds": "1700000000", "nanoseconds": 5}}`, true},
		{"vschema ks", "global", "keyspaces/ks/VSchema", &vschemapb.Keyspace{},
			`{"sharded": true, "vindexes": {"hash": {"type": "before", "params": {"b": "2", "a": "1"}}},
			"tables": {"t2": {}, "t1": {"column_vindexes": [{"column": "id", "name": "hash"}],
			"columns": [{"name": "id", "type": "INT64", "default": "\u00e9\n\""}]}}}`, true},
		{"shard ks 0", "global", "keyspaces/ks/shards/0/Shard", &topodatapb.Shard{},
			`{"primary_alias": {"cell": "before", "uid": 4294967295}, "is_primary_serving": true,
			"key_range": {"end": "gA=="}}`, true},
		{"tablet zone1-100", "zone1", "tablets/zone1-0000000100/Tablet", &topodatapb.Tablet{},
			`{"alias": {"cell": "zone1", "uid": 100}, "hostname": "before", "port_map": {"vt": 15000, "grpc": 15999},
			"keyspace": "ks", "shard": "0", "type": "REPLICA", "tags": {"b": "2", "a": "1"}}`, true},
		{"shard-replication zone1 ks 0", "zone1", "keyspaces/ks/shards/0/ShardReplication", &topodatapb.ShardReplication{},
			`{"nodes": [{"tablet_alias": {"cell": "before", "uid": 100}}]}`, true},
		{"srv-keyspace zone1 ks", "zone1", "keyspaces/ks/SrvKeyspace", &topodatapb.SrvKeyspace{},
			`{"partitions": [{"served_type": "PRIMARY",
			"shard_references": [{"name": "before", "key_range": {"start": "gA=="}}]}]}`, true},
		{"srv-vschema zone1", "zone1", "SrvVSchema", &vschemapb.SrvVSchema{},
			`{"keyspaces": {"ks": {"tables": {"before": {}}}}, "routing_rules": {}}`, true},
		{"routing-rules", "global", "RoutingRules", &vschemapb.RoutingRules{},
			`{"rules": [{"from_table": "before", "to_tables": ["ks.t1", "ks.t2"]}]}`, true},
		{"shard-routing-rules", "global", "ShardRoutingRules", &vschemapb.ShardRoutingRules{},
			`{"rules": [{"from_keyspace": "before", "to_keyspace": "b", "shard": "-80"}]}`, false},
		{"mirror-rules", "global", "MirrorRules", &vschemapb.MirrorRules{},
			`{"rules": [{"from_table": "before", "to_table": "x", "percent": 12.5}]}`, false},
		{"keyspace-routing-rules", "global", "routing_rules/keyspace/Rules", &vschemapb.KeyspaceRoutingRules{},
			`{"rules": [{"from_keyspace": "before", "to_keyspace": "b"}]}`, true},
		{"external-cluster other", "global", "ExternalClusters/vitess/other", &topodatapb.ExternalVitessCluster{},
			`{"topo_config": {"topo_type": "etcd2", "server": "before", "root": "/x"}}`, true},
		{"workflow w1", "global", "workflows/w1/Workflow", &workflowpb.Workflow{},
			`{"uuid": "w1", "factory_name": "before", "name": "n", "state": "Running", "data": "AAEC"}`, false},
	}
}

// unknown is a field that a newer Vitess may know.
var unknown = protowire.AppendVarint(protowire.AppendTag(nil, 9999, protowire.VarintType), 7)

func (s *sample) expected(t *testing.T, word string, more []byte) proto.Message {
	t.Helper()
	message := proto.Clone(s.message)
	if err := protojson.Unmarshal([]byte(strings.ReplaceAll(s.json, "before", word)), message); err != nil {
		t.Fatal(err)
	}
	if more != nil {
		message.ProtoReflect().SetUnknown(protoreflect.RawFields(more))
	}
	return message
}

func (s *sample) parse(t *testing.T, how func([]byte, proto.Message) error, data string) proto.Message {
	t.Helper()
	message := proto.Clone(s.message)
	if err := how([]byte(data), message); err != nil {
		t.Fatalf("%s: %v", data, err)
	}
	return message
}

func same(t *testing.T, what string, got, wanted proto.Message) {
	t.Helper()
	if !proto.Equal(got, wanted) {
		t.Errorf("%s:\n%v\nbut it should be\n%v", what, prototext.Format(got), prototext.Format(wanted))
	}
}

func sameJSON(t *testing.T, what, got, wanted string) {
	t.Helper()
	var left, right any
	if err := json.Unmarshal([]byte(got), &left); err != nil {
		t.Fatalf("%s: %v: %s", what, err, got)
	}
	if err := json.Unmarshal([]byte(wanted), &right); err != nil {
		t.Fatalf("%s: %v: %s", what, err, wanted)
	}
	if !reflect.DeepEqual(left, right) {
		t.Errorf("%s:\n%s\nbut it should be\n%s", what, got, wanted)
	}
}

// TestRecords writes each kind by Vitess, reads it through the mount, edits it there, and lets Vitess read it.
func TestRecords(t *testing.T) {
	onEach(t, servers, func(t *testing.T, b *backend) {
		w := newWorld(t, b, "zone1")
		for _, s := range samples(w) {
			t.Run(strings.Fields(s.kind)[0], func(t *testing.T) { s.check(t, w) })
		}
	})
}

func (s *sample) check(t *testing.T, w *world) {
	file, at := s.cell+"/"+s.path, s.cell+" "+s.path
	discard := prototext.UnmarshalOptions{DiscardUnknown: true}
	w.vtopo("create "+s.kind, s.json)
	// As a newer Vitess would have written it.
	w.vtopo("put "+at, w.vtopo("get "+at, "")+string(unknown))
	stored := w.vtopo("get "+at, "")
	w.seen(t, file, stored)

	plain := s.expected(t, "before", nil)
	same(t, "Vitess itself", s.parse(t, proto.Unmarshal, stored), s.expected(t, "before", unknown))
	same(t, "the text form", s.parse(t, discard.Unmarshal, w.read(file+".txt")), plain)
	s.sameAsVitess(t, w, file, at)
	s.sameVersion(t, w, file, at)

	// One edit through each form. Nothing else is different.
	for _, edit := range []struct{ form, from, to string }{
		{".txt", "before", "after"},
		{".json", "after", "final"},
		{".txt", "final", "before"},
	} {
		w.sh(fmt.Sprintf("sed -i s/%s/%s/ %s%s", edit.from, edit.to, file, edit.form))
		what := "after an edit of " + edit.form
		same(t, what, s.parse(t, proto.Unmarshal, w.vtopo("get "+at, "")), s.expected(t, edit.to, unknown))
		s.sameAsVitess(t, w, file, at)
		s.sameVersion(t, w, file, at)
	}

	// What Vitess changes is seen in all forms, and what the mount has made Vitess can go on with.
	w.vtopo("update "+s.kind, strings.ReplaceAll(s.json, "before", "again"))
	eventually(t, "the update is seen", func() bool {
		text, err := os.ReadFile(w.path(file + ".txt"))
		return err == nil && strings.Contains(string(text), "again")
	})
	s.sameAsVitess(t, w, file, at)
	s.sameVersion(t, w, file, at)

	// The stored bytes themselves, with a word of the same length.
	w.sh("LC_ALL=C sed -i s/again/other/ " + file)
	same(t, "after an edit of the bytes", s.parse(t, proto.Unmarshal, w.vtopo("get "+at, "")), s.expected(t, "other", nil))

	// Made through the mount, as if it had never been there.
	text := w.read(file + ".txt")
	w.sh("rm " + file)
	w.sh(fmt.Sprintf("mkdir -p $(dirname %[1]s); printf %%s %[2]s > %[1]s.txt", file, quoted(text)))
	same(t, "made through the mount", s.parse(t, proto.Unmarshal, w.vtopo("get "+at, "")), s.expected(t, "other", nil))
	s.sameAsVitess(t, w, file, at)
}

func quoted(text string) string { return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'" }

// seen waits until the mount shows these bytes.
func (w *world) seen(t *testing.T, file, stored string) {
	t.Helper()
	eventually(t, "it is seen", func() bool {
		data, err := os.ReadFile(w.path(file))
		return err == nil && string(data) == stored
	})
}

// sameAsVitess compares the JSON form with what Vitess prints.
func (s *sample) sameAsVitess(t *testing.T, w *world, file, at string) {
	t.Helper()
	ours := w.read(file + ".json")
	if s.decoded {
		sameJSON(t, "the JSON form, against DecodeContent", ours, w.vtopo("cat --json "+at, ""))
	}
	sameJSON(t, "the JSON form, against the record that Vitess reads", ours, w.vtopo("read "+s.kind, ""))
}

func (s *sample) sameVersion(t *testing.T, w *world, file, at string) {
	t.Helper()
	for _, form := range []string{"", ".txt", ".json"} {
		if ours, theirs := w.version(file+form), strings.TrimSpace(w.vtopo("version "+at, "")); ours != theirs {
			t.Errorf("version of %s%s: %s, but Vitess says %s", file, form, ours, theirs)
		}
	}
}

// TestMetadata is plain text on both sides.
func TestMetadata(t *testing.T) {
	onEach(t, servers, func(t *testing.T, b *backend) {
		w := newWorld(t, b, "")
		w.vtopo("create metadata owner", "anna")
		w.seen(t, "global/metadata/owner", "anna")
		w.sh("printf bertha > global/metadata/owner")
		if got := w.vtopo("read metadata owner", ""); got != "bertha" {
			t.Errorf("Vitess reads %q", got)
		}
		ours := w.version("global/metadata/owner")
		theirs := strings.TrimSpace(w.vtopo("version global metadata/owner", ""))
		if ours != theirs {
			t.Errorf("version %s, but Vitess says %s", ours, theirs)
		}
	})
}

// TestRebuild lets Vitess make the serving graph of what was written through the mount.
func TestRebuild(t *testing.T) {
	onEach(t, servers, func(t *testing.T, b *backend) {
		w := newWorld(t, b, "zone1")
		w.sh(`mkdir -p global/keyspaces/ks/shards/0 zone1/tablets/zone1-0000000100
			echo 'durability_policy: "none"' > global/keyspaces/ks/Keyspace.txt
			echo 'is_primary_serving: true primary_alias { cell: "zone1" uid: 100 }' > global/keyspaces/ks/shards/0/Shard.txt
			echo '{"tables": {"t1": {}}}' > global/keyspaces/ks/VSchema.json
			echo 'alias { cell: "zone1" uid: 100 } keyspace: "ks" shard: "0" type: PRIMARY hostname: "db"' \
				> zone1/tablets/zone1-0000000100/Tablet.txt`)
		w.vtopo("rebuild-keyspace-graph ks", "")
		w.vtopo("rebuild-vschema-graph", "")
		eventually(t, "the serving graph is seen", func() bool {
			out, err := w.shell("jq -e '.partitions | length > 0' zone1/keyspaces/ks/SrvKeyspace.json && " +
				"jq -e .keyspaces.ks.tables.t1 zone1/SrvVSchema.json").Output()
			return err == nil && len(out) > 0
		})
		sameJSON(t, "SrvKeyspace", w.read("zone1/keyspaces/ks/SrvKeyspace.json"), w.vtopo("read srv-keyspace zone1 ks", ""))
		sameJSON(t, "SrvVSchema", w.read("zone1/SrvVSchema.json"), w.vtopo("read srv-vschema zone1", ""))
	})
}

// TestCells adds and deletes cells by Vitess.
func TestCells(t *testing.T) {
	onEach(t, servers, func(t *testing.T, b *backend) {
		w := newWorld(t, b, "")
		w.vtopo("create cell-info zone7", fmt.Sprintf(`{"server_address": "%s", "root": "%s/zone7"}`, w.server, w.root))
		there := func() bool {
			_, err := os.Stat(w.path("zone7"))
			return err == nil
		}
		eventually(t, "the cell is there", there)
		w.sh(`mkdir -p zone7/keyspaces/ks && echo 'partitions {}' > zone7/keyspaces/ks/SrvKeyspace.txt`)
		if got := w.vtopo("list zone7 keyspaces", ""); got != "ks\n" {
			t.Errorf("Vitess lists %q", got)
		}
		w.sh("rm -r zone7/keyspaces/ks")
		w.vtopo("delete-cell-info zone7", "")
		eventually(t, "the cell is gone", func() bool { return !there() })
	})
}
