"""Train on two hosts, cut the cable, check that the silent host is named, repair the cable, resume.

    python tests/campaigns/two_hosts.py                                      in full
    python tests/campaigns/two_hosts.py [--per-host 1] [--mode ddp] [--steps 60] [--cut-at 20] [--silence 20]
        [--impatient] [--keep FOLDER]

The two hosts are made on this machine out of Linux namespaces: each has its own name, network and address, a veth pair
is the cable, and they share a file system, as the hosts of a cluster share the folder that a run is written to. It
needs root, or a kernel that lets others make user namespaces, and unshare, nsenter (util-linux) and ip (iproute2);
without them the reason is printed and the exit code is 77. The namespaces are removed when the script ends.

    1. torchrun on both hosts, `isoflop train` over gloo, rendezvous at the first host's address: an unbroken run
    2. the same again, and at step --cut-at the cable is cut (`ip link set cable down`): nothing arrives any more and
       no error is raised, as with a dead switch or a crashed host. Each host has to notice the silence, name the
       processes of the other one and stop.
    3. the cable is repaired and the run resumed: all of its losses have to equal the unbroken run's, bit for bit.

Exit code 0 if all of that happened; 1, with what did not, otherwise.
"""

import argparse
import contextlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from isoflop.config import to_dict
from isoflop.files import write_json
from isoflop.model.presets import modern
from isoflop.parallel.config import ParallelConfig
from isoflop.records import read_run
from isoflop.trainer import RunConfig
from isoflop.trainer.config import BatchConfig, EveryConfig, RuntimeConfig

SKIPPED = 77
CABLE = "cable"
NAMES = {"left": "10.77.0.1", "right": "10.77.0.2"}
PORT = 29400
TOOLS = ("unshare", "nsenter", "ip", "mount")
RETRIES, PATIENCE = 6, 25.0  # of TCP before it gives a connection up; Linux's own 15 are a quarter of an hour
LEAVING = 180.0  # seconds for torchrun to leave after the processes
STARTING = 180.0  # seconds for imports, rendezvous and preparing the text, on a busy machine


def why_not() -> str:
    """Why hosts cannot be made on this machine; "" if they can."""
    if not sys.platform.startswith("linux"):
        return "namespaces are Linux's"
    missing = [tool for tool in TOOLS if not shutil.which(tool)]
    if missing:
        return f"{', '.join(missing)} not found: install util-linux and iproute2"
    try_it = [*enter_new(), "sh", "-c", "ip link add end0 type veth peer name end1"]
    done = subprocess.run(try_it, capture_output=True, text=True)
    if done.returncode:
        reason = " ".join(done.stderr.split())
        return f"network namespaces cannot be made here ({reason}): be root, or allow user namespaces"
    return ""


def enter_new() -> list[str]:
    """A command that runs another one in namespaces of its own, which end with it: nothing is left on the machine."""
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    return ["unshare", *user, "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]


@dataclass
class Host:
    """A name, a network and an address of its own, held open by a process that sleeps."""

    name: str
    address: str
    sleeper: subprocess.Popen[bytes] = field(repr=False)

    @classmethod
    def make(cls, name: str, address: str, hosts_file: Path) -> "Host":
        own = (
            f"{shlex.quote(sys.executable)} -c 'import socket; socket.sethostname(\"{name}\")' && "
            f"mount --bind '{hosts_file}' /etc/hosts && "
            f"echo {RETRIES} > /proc/sys/net/ipv4/tcp_retries2 && ip link set lo up"
        )
        sleeper = subprocess.Popen(
            ["unshare", "--net", "--uts", "--mount", "sh", "-c", f"{own} && echo ready && exec sleep infinity"],
            stdout=subprocess.PIPE,
        )
        assert sleeper.stdout is not None
        if sleeper.stdout.readline() != b"ready\n":
            raise SystemExit(f"the host {name} could not be made")
        return cls(name, address, sleeper)

    def inside(self, *command: str) -> list[str]:
        return ["nsenter", "--target", str(self.sleeper.pid), "--net", "--uts", "--mount", *command]

    def run(self, *command: str) -> None:
        subprocess.run(self.inside(*command), check=True)

    def start(self, *command: str, log: Path) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "GLOO_SOCKET_IFNAME": CABLE, "OMP_NUM_THREADS": "1"}
        with log.open("wb") as output:
            return subprocess.Popen(self.inside(*command), stdout=output, stderr=subprocess.STDOUT, env=environment)


def connect(folder: Path) -> list[Host]:
    """Two hosts and the cable between them."""
    hosts_file = folder / "hosts"
    lines = ["127.0.0.1 localhost", *(f"{address} {name}" for name, address in NAMES.items())]
    hosts_file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    hosts = [Host.make(name, address, hosts_file) for name, address in NAMES.items()]
    subprocess.run(["ip", "link", "add", "end0", "type", "veth", "peer", "name", "end1"], check=True)
    for number, host in enumerate(hosts):
        subprocess.run(["ip", "link", "set", f"end{number}", "netns", str(host.sleeper.pid), "name", CABLE], check=True)
        host.run("ip", "address", "add", f"{host.address}/24", "dev", CABLE)
        host.run("ip", "link", "set", CABLE, "up")
    return hosts


def launch(hosts: list[Host], per_host: int, arguments: list[str], folder: Path, name: str) -> list["Launched"]:
    """Start torchrun on each host."""
    first, launched = hosts[0], []
    for host in hosts:
        command = [
            *(sys.executable, "-m", "torch.distributed.run"),
            *("--nnodes", str(len(hosts)), "--nproc-per-node", str(per_host)),
            *("--rdzv-backend", "c10d", "--rdzv-endpoint", f"{first.name}:{PORT}", "--rdzv-id", name),
            *("-m", "isoflop", "train", *arguments),
        ]
        log = folder / f"{name}-{host.name}.log"
        launched.append(Launched(host, host.start(*command, log=log), log))
    return launched


@dataclass
class Launched:
    """A torchrun on a host."""

    host: Host
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def works(self) -> bool:
        """Whether a process that it started is still there, and not only waits to be noticed."""
        with contextlib.suppress(OSError):
            children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
            states = [Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0] for child in children]
            return any(state != "Z" for state in states)
        return False

    @property
    def output(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")


def wait(what: str, until: Callable[[], bool], seconds: float, launched: list[Launched]) -> float:
    """Seconds waited; if it does not come about, the whole output is shown."""
    began = time.monotonic()
    while not until():
        if time.monotonic() - began > seconds:
            for one in launched:
                print(f"--- {one.host.name}\n{one.output[-4000:]}")
            raise SystemExit(f"not in {seconds:.0f} s: {what}")
        time.sleep(0.1)
    return time.monotonic() - began


def ended(launched: list[Launched]) -> bool:
    return all(one.process.poll() is not None for one in launched)


def steps_done(run: Path) -> int:
    metrics = run / "metrics.jsonl"
    return metrics.read_bytes().count(b'"grad_norm"') if metrics.exists() else 0


def write_config(path: Path, steps: int, processes: int, mode: str) -> None:
    """A small run: a tenth of a second per step, a checkpoint every five steps."""
    config = RunConfig(
        parallel=ParallelConfig(mode=mode, timeout=STARTING),
        model=modern(layers=2, d_model=64, context=128, vocab_size=512),
        batch=BatchConfig(sequences=4 * processes),
        runtime=RuntimeConfig(device="cpu", dtype="float32", threads=1),
        every=EveryConfig(log=1, evaluate=1000, sample=1000, checkpoint=5),
        steps=steps,
    )
    plain = to_dict(config)
    plain["data"]["vocab_size"] = config.model.vocab_size
    write_json(path, plain)


def text(folder: Path) -> Path:
    """Text that every Python has: its own library's source, a megabyte of it."""
    path, held = folder / "text.txt", []
    for source in sorted(Path(os.__file__).parent.glob("*.py")):
        held.append(source.read_text(encoding="utf-8", errors="ignore"))
        if sum(map(len, held)) > 1e6:
            break
    path.write_text("\n".join(held), encoding="utf-8")
    return path


def losses(run: Path) -> list[tuple[int, float]]:
    return [(line.step, line.loss) for line in read_run(run).training]


def said_why(number: int, per_host: int, launched: list[Launched]) -> str:
    """The line in which a host names the other one and a process of it as silent; empty if it does not."""
    other = launched[1 - number].host
    ranks = "|".join(str(rank) for rank in range((1 - number) * per_host, (2 - number) * per_host))
    for line in launched[number].output.splitlines():
        if re.search(rf"\brank (?:{ranks})\b", line) and re.search(
            rf"\b{other.name}\b.*(?:is silent|does not answer)", line
        ):
            return line.strip()
    return ""


def tell(given: argparse.Namespace, folder: Path) -> list[str]:
    """Run all three parts. Returns what did not happen as it should."""
    hosts = connect(folder)
    os.environ["ISOFLOP_HOME"] = str(folder / "home")
    config, source = folder / "config.json", text(folder)
    write_config(config, given.steps, 2 * given.per_host, given.mode)
    whole, broken = folder / "whole", folder / "broken"
    new = [str(source), "--config", str(config)]

    running = launch(hosts, given.per_host, [*new, "--out", str(whole)], folder, "whole")
    took = wait("the unbroken run ends", lambda: ended(running), STARTING + given.steps, running)
    failed = [one for one in running if one.process.returncode]
    for one in failed:
        print(f"--- {one.host.name}\n{one.output[-4000:]}")
    if failed:
        return ["the unbroken run failed"]
    print(f"unbroken: {given.steps} steps by {2 * given.per_host} processes on two hosts, {took:.1f} s", flush=True)

    short = ["--set", f"parallel.timeout={given.silence}"]
    running = launch(hosts, given.per_host, [*new, *short, "--out", str(broken)], folder, "broken")
    wait(f"step {given.cut_at}", lambda: ended(running) or steps_done(broken) >= given.cut_at, STARTING, running)
    hosts[0].run("ip", "link", "set", CABLE, "down")
    cut = time.monotonic()
    print(f"the cable is cut at step {steps_done(broken)}; silence allowed: {given.silence:g} s", flush=True)
    spoke, left = [0.0, 0.0], [0.0, 0.0]

    def watch() -> bool:
        for number, one in enumerate(running):
            spoke[number] = spoke[number] or (time.monotonic() - cut) * bool(said_why(number, given.per_host, running))
            if given.impatient and spoke[number] and not one.works:
                one.process.kill()
            left[number] = left[number] or (time.monotonic() - cut) * (one.process.poll() is not None)
        return all(left)

    wait("both hosts give up", watch, given.silence + LEAVING, running)
    wrong = []
    for number, one in enumerate(running):
        line, other = said_why(number, given.per_host, running), hosts[1 - number]
        print(
            f"{one.host.name}: {line or 'named nobody'}\n  {spoke[number]:.1f} s after the cut; torchrun left after "
            f"{left[number]:.1f} s with exit code {one.process.returncode}",
            flush=True,
        )
        if not one.process.returncode or not line:
            print(one.output[-4000:])
            wrong.append(f"{one.host.name} did not name a process of {other.name} and stop")

    hosts[0].run("ip", "link", "set", CABLE, "up")
    patient = ["--set", f"parallel.timeout={STARTING}"]
    running = launch(hosts, given.per_host, ["--resume", str(broken), *patient], folder, "resumed")
    wait("the resumed run ends", lambda: ended(running), STARTING + given.steps, running)
    for one in running:
        if one.process.returncode:
            print(f"--- {one.host.name}\n{one.output[-4000:]}")
            wrong.append(f"{one.host.name} did not resume")
    ours, theirs = losses(broken), losses(whole)
    resumed = [event.step for event in read_run(broken).events if event.event == "resumed"]
    same = sum(a == b for a, b in zip(ours, theirs, strict=False))
    print(f"resumed from step {resumed}; {same} of {len(theirs)} losses are the unbroken run's, bit for bit")
    if ours != theirs:
        wrong.append("the resumed run differs from the unbroken one")
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--per-host", type=int, default=1, help="processes on each host")
    parser.add_argument("--mode", choices=["ddp", "fsdp", "hsdp"], default="ddp")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--cut-at", type=int, default=20)
    parser.add_argument("--silence", type=float, default=20.0, help="seconds: parallel.timeout")
    parser.add_argument(
        "--impatient", action="store_true", help="end a torchrun whose processes have left, not wait until it notices"
    )
    parser.add_argument("--keep", type=Path, help="a folder in which runs and logs stay")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.silence > 0.8 * PATIENCE:
        parser.error(
            f"--silence {given.silence:g} is too long: TCP gives up after {PATIENCE:g} s here, and torchrun with it"
        )
    if not given.inside:
        reason = why_not()
        if reason:
            print(f"skipped: {reason}")
            sys.exit(SKIPPED)
        sys.exit(subprocess.run([*enter_new(), sys.executable, __file__, *sys.argv[1:], "--inside"]).returncode)
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.keep.resolve() if given.keep else Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        wrong = tell(given, folder)
    for sentence in wrong:
        print(f"wrong: {sentence}")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
