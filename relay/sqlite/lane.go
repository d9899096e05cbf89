package sqlite

import "github.com/posternhq/postern/relay"

// laneName says where a delivery goes.
type laneName struct {
	app         relay.AppID
	endpoint    string
	destination string
}

const (
	insertLane = `INSERT INTO lane (app, endpoint, destination, waiting) VALUES (?, ?, ?, 0)`
	selectLane = `SELECT seq FROM lane WHERE app = ? AND endpoint = ? AND destination = ?`
)

// lane is the number of a lane, 0 when there is none. Lanes are never deleted,
// so that a number once seen in a committed transaction stays true.
func (t *tx) lane(n laneName) (int64, error) {
	if seq := t.w.lanes[n]; seq != 0 {
		return seq, nil
	}
	seq, err := t.number(selectLane, n.app, n.endpoint, n.destination)
	if err == nil && seq != 0 {
		t.w.lanes[n] = seq
	}
	return seq, err
}

// makeLane is lane and makes the one that is missing.
func (t *tx) makeLane(n laneName) (int64, error) {
	seq, err := t.lane(n)
	if err != nil || seq != 0 {
		return seq, err
	}
	res, err := t.exec(insertLane, n.app, n.endpoint, n.destination)
	if err != nil {
		return 0, err
	}
	t.w.lanes[n] = res.last
	return res.last, nil
}
