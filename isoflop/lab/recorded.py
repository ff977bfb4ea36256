"""Verdicts that are on record in a lab's folder, for its pages and lists."""

from isoflop.errors import UserError
from isoflop.lab.claim import Claim, all_claims
from isoflop.lab.outcome import Outcome
from isoflop.lab.store import Store
from isoflop.lab.study import Study
from isoflop.lab.verdict import decide


def recorded(claim: Claim, store: Store) -> Outcome | None:
    """What came of a claim so far, from what is on record alone; None if there was no verdict yet."""
    verdicts = store.notes(claim, "verdict")
    if not verdicts or (claim.setup.length == "seconds" and claim.trains and store.speeds(claim.hash) is None):
        return None
    study = Study.of(claim, store)
    study.choose()
    pairs = int(verdicts[-1].get("pairs", 0))
    looks = [look for look in verdicts if look.get("pairs") != pairs]
    fixed = min(float(line.get("time", 0.0)) for line in store.fixings(claim))
    return Outcome(study, decide(claim, study.measured(pairs), len(looks)), pairs, 0.0, fixed, len(looks))


def claims_there(store: Store) -> list[Claim]:
    """The claims that a folder has verdicts of, those of isoflop first and in their order. Where a claim of isoflop is
    the one that was fixed, its words are those of today."""
    ours = {claim.name: claim for claim in all_claims()}
    ours |= {f"{name}-full": claim.as_full() for name, claim in ours.items() if claim.full}
    found = {}
    for name in store.names():
        versions = store.versions(name)
        if not versions:
            continue
        last = versions[-1]
        today = ours.get(name)
        claim = today if today is not None and today.hash == last.hash else last
        if store.notes(claim, "verdict"):
            found[name] = claim
    order = {name: index for index, name in enumerate(ours)}
    return sorted(found.values(), key=lambda claim: (order.get(claim.name, len(order)), claim.name))


def one_there(name: str, store: Store) -> Claim:
    """Raises:
    UserError: if a folder has no verdict on a claim of this name.
    """
    for claim in claims_there(store):
        if claim.name == name:
            return claim
    known = ", ".join(claim.name for claim in claims_there(store)) or "none"
    raise UserError(f"{store.folder} has no verdict on {name!r} (it has: {known}); `isoflop lab run {name}` makes one")
