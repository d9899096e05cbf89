package sqlite

import (
	"context"

	"github.com/posternhq/postern/relay"
)

const (
	insertManifest = `INSERT INTO manifest (sha256, origin, applied_at, applied_by, base, status, ended_at, note, signature, key_id)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`
	insertSource   = `INSERT INTO manifest_source (number, source) VALUES (?, ?)`
	endManifest    = `UPDATE manifest SET status = ?, ended_at = ? WHERE number = ?`
	updateManifest = `UPDATE manifest SET status = ?, ended_at = ?, note = ?, signature = ?, key_id = ? WHERE number = ?`

	manifestColumns = `number, sha256, origin, applied_at, applied_by, base, status, ended_at, note, signature, key_id`
	selectManifest  = `SELECT ` + manifestColumns + `, (SELECT source FROM manifest_source s WHERE s.number = m.number)
		FROM manifest m WHERE number = ?`
	selectManifests = `SELECT ` + manifestColumns + ` FROM manifest ORDER BY number DESC LIMIT ?`
)

// defaultManifests is how many Manifests lists unless asked for more or fewer.
const defaultManifests = 100

// AddManifest implements relay.EgressStore. Rows are never deleted, so that the
// number after the greatest leaves no gap, and a version that is refused takes
// none.
func (s *Store) AddManifest(ctx context.Context, v relay.ManifestVersion, ended ...relay.ManifestVersion) (number int64, err error) {
	err = s.write(ctx, "add manifest", func(t *tx) error {
		for _, e := range ended {
			res, err := t.exec(endManifest, e.Status, timeArg(e.EndedAt), e.Number)
			if err != nil {
				return err
			}
			if res.changed == 0 {
				return noManifest(e.Number)
			}
		}
		res, err := t.exec(insertManifest, v.SHA256, v.Origin, v.AppliedAt.UnixMicro(), v.AppliedBy, v.Base,
			v.Status, timeArg(v.EndedAt), v.Note, v.Signature, v.KeyID)
		if err != nil {
			return err
		}
		number = res.last
		_, err = t.exec(insertSource, number, notNil(v.Source))
		return err
	})
	if err != nil {
		return 0, err
	}
	return number, nil
}

// UpdateManifests implements relay.EgressStore.
func (s *Store) UpdateManifests(ctx context.Context, versions ...relay.ManifestVersion) error {
	return s.write(ctx, "update manifests", func(t *tx) error {
		for _, v := range versions {
			res, err := t.exec(updateManifest, v.Status, timeArg(v.EndedAt), v.Note, v.Signature, v.KeyID, v.Number)
			if err != nil {
				return err
			}
			if res.changed == 0 {
				return noManifest(v.Number)
			}
		}
		return nil
	})
}

// Manifest implements relay.EgressStore.
func (s *Store) Manifest(ctx context.Context, number int64) (v relay.ManifestVersion, err error) {
	err = s.read(ctx, "get manifest", func(c *conn) error {
		found, err := c.one(func(r *row) {
			v = scanManifest(r)
			v.Source = r.bytes()
		}, selectManifest, number)
		if err == nil && !found {
			err = noManifest(number)
		}
		return err
	})
	return v, err
}

// Manifests implements relay.EgressStore.
func (s *Store) Manifests(ctx context.Context, limit int) (all []relay.ManifestVersion, err error) {
	if limit <= 0 {
		limit = defaultManifests
	}
	err = s.read(ctx, "list manifests", func(c *conn) error {
		all, err = list(ctx, c, scanManifest, selectManifests, limit)
		return err
	})
	return all, err
}

// scanManifest reads all but the source.
func scanManifest(r *row) relay.ManifestVersion {
	return relay.ManifestVersion{
		Number: r.int(), SHA256: r.str(), Origin: r.str(), AppliedAt: r.time(), AppliedBy: r.str(), Base: r.int(),
		Status: relay.ManifestStatus(r.str()), EndedAt: r.time(), Note: r.str(), Signature: r.str(), KeyID: r.str(),
	}
}

func noManifest(number int64) error {
	return relay.Errorf(relay.NotFound, "there is no version %d of the manifest", number)
}
