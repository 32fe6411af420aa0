//! Seeded random misbehaviour: no panic, no hang, saved state survives a round trip.
