"""Programs that try to get out, and what each must find. Holds no tests.

Every program reports through `attempt(name, action)`, which prints `name: DONE ...` or
`name: REFUSED ...`. `@SECRET@`, `@OUTSIDE@`, `@VICTIM@`, `@PORT@` and `@SOCKET@` are replaced by a
file that must not be read, a folder that must not be written, a process that must live, a port and
a unix socket that must not be reached.
"""

from dataclasses import dataclass

from m1.infra.sandbox.protocol import Ending

PRELUDE = """
import ctypes, errno, os, signal, socket, struct, subprocess, sys, threading, time
libc = ctypes.CDLL(None, use_errno=True)
def attempt(name, action):
    try:
        result = action()
    except BaseException as error:
        print(f"{name}: REFUSED {type(error).__name__} {getattr(error, 'errno', None)}", flush=True)
    else:
        print(f"{name}: DONE {result!r}"[:300], flush=True)
def call(number, *arguments):
    answer = libc.syscall(number, *arguments)
    if answer < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return answer
def read(path):
    with open(path, "rb") as file:
        return file.read(200)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attack:
    """One program and what containing it means.

    Args:
        refused: so many attempts must be reported refused, and none done.
        endings: how the run may end.
        says: text that must be printed: the program got as far as it should, and no further.
        never_says: text that must not be printed.
        leaks_outside: with this and without a sandbox the program prints DONE (a control).
    """

    name: str
    source: str
    refused: int = 0
    endings: tuple[Ending, ...] = (Ending.EXITED,)
    says: str = ""
    never_says: str = "DONE"
    leaks_outside: bool = False

    @property
    def is_endless(self) -> bool:
        """Whether only the clock can end it."""
        return set(self.endings) <= {*TIME, Ending.MEMORY}


TIME = (Ending.WALL_TIME, Ending.CPU_TIME)
MEMORY = (Ending.MEMORY, Ending.EXITED, Ending.BROKEN)

READS_FILES = (
    Attack(
        name="read-host-files",
        source="""
for path in ("@SECRET@", "/etc/shadow", "/etc/passwd", "/root/.bashrc", "/proc/kcore"):
    attempt(path, lambda: read(path))
attempt("list /root", lambda: os.listdir("/root/.ssh"))
attempt("list home", lambda: os.listdir("/home"))
""",
        refused=7,
        leaks_outside=True,
    ),
    Attack(
        name="read-through-symlinks",
        source="""
os.symlink("@SECRET@", "link"); attempt("link", lambda: read("link"))
os.symlink("/", "root"); attempt("root", lambda: read("root/etc/shadow"))
os.symlink("../../../../../../../../etc", "up"); attempt("up", lambda: read("up/shadow"))
attempt("hard link", lambda: os.link("@SECRET@", "hard"))
attempt("dots", lambda: read("../" * 30 + "@SECRET@"))
""",
        refused=5,
        leaks_outside=True,
    ),
    Attack(
        name="read-through-proc",
        source="""
attempt("root", lambda: read("/proc/1/root@SECRET@"))
attempt("own root", lambda: read("/proc/self/root@SECRET@"))
attempt("working folder", lambda: os.listdir(f"/proc/{os.getppid()}/cwd/etc/ssl"))
attempt("memory", lambda: open(f"/proc/{os.getppid()}/mem", "rb"))
attempt("descriptors", lambda: os.listdir(f"/proc/{os.getppid()}/fd"))
attempt("map files", lambda: os.listdir(f"/proc/{os.getppid()}/map_files"))
""",
        refused=6,
        leaks_outside=True,
    ),
    Attack(
        name="launcher-environment",
        source="""
for number in ["self", os.getppid(), 1, "@VICTIM@"]:
    try:
        print(read(f"/proc/{number}/environ"))
    except OSError as error:
        print("REFUSED", error.errno)
print(sorted(os.environ), "end")
""",
        says="end",
        never_says="canary-in-the-environment",
        leaks_outside=True,
    ),
    Attack(
        name="write-outside",
        source="""
for path in ("@OUTSIDE@/new", "/usr/lib/new", "/new", "/etc/new", "/var/new", "/dev/shm/new",
             sys.prefix + "/new", os.__file__):
    attempt(path, lambda: open(path, "ab").write(b"was here"))
attempt("rename", lambda: os.rename("solution.py", "@OUTSIDE@/solution.py"))
attempt("remove", lambda: os.unlink("@SECRET@"))
attempt("truncate", lambda: os.truncate("@SECRET@", 0))
attempt("mode", lambda: os.chmod("@SECRET@", 0o777))
attempt("folder", lambda: os.mkdir("@OUTSIDE@/folder"))
""",
        refused=13,
    ),
    Attack(
        name="devices",
        source="""
attempt("mem", lambda: read("/dev/mem"))
attempt("kmsg", lambda: read("/dev/kmsg"))
attempt("disk", lambda: read("/dev/vda"))
attempt("kvm", lambda: open("/dev/kvm", "rb"))
attempt("terminal", lambda: open("/dev/tty", "rb"))
attempt("fuse", lambda: open("/dev/fuse", "rb"))
attempt("mknod", lambda: os.mknod("disk", 0o600 | 0o060000, os.makedev(254, 0)))
attempt("mknod memory", lambda: os.mknod("memory", 0o600 | 0o020000, os.makedev(1, 1)))
""",
        refused=8,
    ),
)

NETWORK = (
    Attack(
        name="network",
        source="""
def connect(family, kind, address):
    with socket.socket(family, kind) as s:
        s.settimeout(0.3)
        s.connect(address)
        s.send(b"hello")
        if kind == socket.SOCK_DGRAM:
            return s.recv(10)
attempt("host port", lambda: connect(socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", @PORT@)))
attempt("internet", lambda: connect(socket.AF_INET, socket.SOCK_STREAM, ("1.1.1.1", 443)))
attempt("udp", lambda: connect(socket.AF_INET, socket.SOCK_DGRAM, ("1.1.1.1", 53)))
attempt("six", lambda: connect(socket.AF_INET6, socket.SOCK_STREAM, ("2606:4700::1111", 443)))
attempt("name", lambda: socket.getaddrinfo("example.org", 443))
attempt("raw", lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP))
attempt("packet", lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW))
attempt("vsock", lambda: socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM))
attempt("netlink", lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0))
attempt("crypto", lambda: socket.socket(socket.AF_ALG, socket.SOCK_SEQPACKET))
""",
        refused=10,
        leaks_outside=True,
    ),
    Attack(
        name="metadata-address",
        source="""
import urllib.request
for host in ("169.254.169.254", "100.100.100.200", "[fd00:ec2::254]", "metadata.google.internal"):
    url = f"http://{host}/latest/meta-data/"
    attempt(host, lambda: urllib.request.urlopen(url, timeout=0.3).read())
""",
        refused=4,
    ),
    Attack(
        name="unix-sockets",
        source="""
def connect(address):
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as s:
        s.connect(address)
attempt("path", lambda: connect("@SOCKET@"))
attempt("abstract", lambda: connect("\\0m1-test-@PORT@"))
attempt("docker", lambda: connect("/var/run/docker.sock"))
""",
        refused=3,
        leaks_outside=True,
    ),
    Attack(
        name="descriptor-passing",
        source="""
left, right = socket.socketpair()
for number in range(3, 256):
    try:
        target = os.readlink(f"/proc/self/fd/{number}")
    except OSError:
        continue
    if number not in (left.fileno(), right.fileno()) and "solution" not in target:
        print("DONE: inherited", number, target)
pidfd = os.pidfd_open(os.getppid())
attempt("take from parent", lambda: call(438, pidfd, 3, 0))
attempt("take from first", lambda: call(438, os.pidfd_open(os.getppid()), 4, 0))
""",
        refused=2,
    ),
)

PROCESSES = (
    Attack(
        name="signals",
        source="""
for number in (os.getppid(), 1, @VICTIM@):
    def hit():
        if number == os.getppid() and os.getppid() == 1:
            os.kill(number, signal.SIGKILL)  # a namespace's first process takes no signal
            raise PermissionError(errno.EPERM, "still here")
        os.kill(number, signal.SIGKILL)
        if number == 1:
            raise PermissionError(errno.EPERM, "still here")
    attempt(number, hit)
    def stop():
        os.kill(number, signal.SIGSTOP)
        if number in (1, os.getppid()):
            raise PermissionError(errno.EPERM, "not stopped: it answers")
    attempt(f"stop {number}", stop)
""",
        refused=6,
    ),
    Attack(
        name="signal-everybody",
        source="""
print("before", flush=True)
try:
    os.kill(-1, signal.SIGKILL)
except OSError as error:
    print("REFUSED", error.errno)
""",
        says="before",
    ),
    Attack(
        name="ptrace",
        source="""
attempt("trace me", lambda: call(101, 0, 0, 0, 0))
attempt("attach", lambda: call(101, 16, os.getppid(), 0, 0))
attempt("seize", lambda: call(101, 0x4206, @VICTIM@, 0, 0))
attempt("read memory", lambda: call(310, os.getppid(), 0, 0, 0, 0, 0))
attempt("write memory", lambda: call(311, os.getppid(), 0, 0, 0, 0, 0))
attempt("compare", lambda: call(312, os.getpid(), os.getppid(), 0, 0, 0))
""",
        refused=6,
    ),
    Attack(
        name="fork-bomb",
        source="""
most = 0
print("begin", flush=True)
while True:
    try:
        os.fork()
    except OSError:
        time.sleep(0.001)
""",
        endings=(*TIME, Ending.MEMORY),
        says="begin",
    ),
    Attack(
        name="fork-bomb-counted",
        source="""
children = []
try:
    for _ in range(500):
        child = os.fork()
        if child == 0:
            time.sleep(60)
        children.append(child)
except OSError as error:
    print("REFUSED after", len(children), error.errno)
print("few" if len(children) < 40 else "DONE", len(children))
""",
        says="few",
    ),
    Attack(
        name="thread-bomb",
        source="""
count = 0
threading.stack_size(65536)
try:
    for _ in range(2000):
        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
        count += 1
except (RuntimeError, MemoryError):
    pass
print("few" if count < 40 else "DONE", count, flush=True)
os._exit(0)
""",
        says="few",
    ),
    Attack(
        name="daemon",
        source="""
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        for number in (0, 1, 2):
            os.close(number)
        while True:
            time.sleep(1)
    os._exit(0)
os.wait()
print("parent gone")
""",
        says="parent gone",
    ),
    Attack(
        name="daemon-holds-the-output",
        source="""
if os.fork() == 0:
    os.setsid()
    time.sleep(600)
print("parent gone", flush=True)
os._exit(0)
""",
        says="parent gone",
    ),
    Attack(
        name="zombie-flood",
        source="""
count = 0
try:
    while count < 500:
        if os.fork() == 0:
            os._exit(0)
        count += 1
except OSError as error:
    print("REFUSED", error.errno)
print("few" if count < 40 else "DONE", count)
""",
        says="few",
    ),
    Attack(
        name="ignores-signals",
        source="""
for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
    signal.signal(number, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, set(signal.Signals))
print("deaf", flush=True)
while True:
    time.sleep(1)
""",
        endings=TIME,
        says="deaf",
    ),
    Attack(
        name="stops-itself",
        source='print("stopping", flush=True); os.kill(os.getpid(), signal.SIGSTOP)',
        endings=TIME,
        says="stopping",
    ),
    Attack(
        name="shell",
        source="""
print(subprocess.run(["/bin/sh", "-c", "id -u; cat @SECRET@ /etc/shadow; ls /root/.ssh; echo over"],
    capture_output=True, text=True, check=False).stdout)
os.execv("/bin/sh", ["sh", "-c", "cat @SECRET@; kill -9 @VICTIM@; echo executed"])
""",
        says="executed",
        never_says="canary",
    ),
)

RESOURCES = (
    Attack(
        name="memory-bomb",
        source="""
print("begin", flush=True)
held = []
while True:
    held.append(bytearray(1 << 20))
""",
        endings=MEMORY,
        says="begin",
    ),
    Attack(
        name="memory-bomb-of-many",
        source="""
print("begin", flush=True)
for _ in range(12):
    if os.fork() == 0:
        held = bytearray(os.urandom(1 << 20) * 60)
        time.sleep(60)
time.sleep(60)
""",
        endings=(Ending.MEMORY, Ending.BROKEN),
        says="",
    ),
    Attack(
        name="huge-integer",
        source='print("begin", flush=True); print(len(str(9 ** 9 ** 9 ** 2)))',
        endings=(*MEMORY, *TIME),
        says="begin",
    ),
    Attack(
        name="zip-bomb",
        source="""
import zlib
print("begin", flush=True)
small = zlib.compress(bytes(1 << 26), 9)
held = [zlib.decompress(small) for _ in range(1000)]
print("DONE")
""",
        endings=(*MEMORY, *TIME),
    ),
    Attack(
        name="anonymous-memory-files",
        source="""
attempt("memfd", lambda: call(319, b"x", 0))
attempt("secret", lambda: call(447, 0))
attempt("shared", lambda: call(29, 0, 1 << 30, 0o1600))
attempt("queue", lambda: call(240, b"q", os.O_CREAT | os.O_RDWR, 0o600, None))
attempt("lock", lambda: 1 / (libc.mlockall(3) == 0))
""",
        refused=5,
    ),
    Attack(
        name="output-bomb",
        source="""
while True:
    sys.stdout.write("x" * 65536)
""",
        endings=(Ending.OUTPUT,),
        never_says="never",
    ),
    Attack(
        name="output-bomb-on-both",
        source="""
for _ in range(100):
    os.write(1, b"x" * 1000)
    os.write(2, b"y" * 1000)
""",
        endings=(Ending.OUTPUT,),
        never_says="never",
    ),
    Attack(
        name="disk-bomb",
        source="""
written = 0
try:
    with open("big", "wb", buffering=0) as file:
        while written < 1 << 30:
            written += file.write(bytes(1 << 20))
except OSError as error:
    print("REFUSED", error.errno)
print("little" if written <= 9 << 20 else "DONE", written)
""",
        endings=(Ending.EXITED, Ending.DISK),
    ),
    Attack(
        name="disk-bomb-of-many",
        source="""
for number in range(400):
    try:
        with open(f"file-{number}", "wb") as file:
            file.write(bytes(1 << 20))
    except OSError as error:
        print("REFUSED", error.errno)
        break
    time.sleep(0.002)
else:
    print("DONE")
""",
        endings=(Ending.EXITED, Ending.DISK),
    ),
    Attack(
        name="disk-bomb-of-deleted-files",
        source="""
held = []
for number in range(50):
    try:
        held.append(open("file", "wb", buffering=0))
        os.unlink("file")
        held[-1].write(bytes(2 << 20))
    except OSError as error:
        print("REFUSED", error.errno)
        break
    time.sleep(0.01)
else:
    print("DONE")
""",
        endings=(Ending.EXITED, Ending.DISK),
    ),
    Attack(
        name="disk-bomb-of-mapped-files",
        source="""
libc.mmap.restype = ctypes.c_void_p
for number in range(50):
    try:
        file = os.open("file", os.O_CREAT | os.O_RDWR)
        os.write(file, bytes(2 << 20))
        libc.mmap(None, ctypes.c_size_t(2 << 20), 1, 1, file, ctypes.c_long(0))
        os.close(file)
        os.unlink("file")
    except OSError as error:
        print("REFUSED", error.errno)
        break
    time.sleep(0.01)
else:
    print("DONE")
""",
        endings=(Ending.EXITED, Ending.DISK, Ending.MEMORY),
    ),
    Attack(
        name="many-small-files",
        source="""
for number in range(1_000_000):
    try:
        os.mkdir(str(number))
    except OSError as error:
        print("REFUSED", error.errno)
        break
else:
    print("DONE")
""",
        endings=(Ending.EXITED, Ending.DISK, Ending.BROKEN, Ending.MEMORY, *TIME),
    ),
    Attack(
        name="bottomless-folder",
        source="""
for depth in range(3000):
    os.mkdir("d" * 50)
    os.chdir("d" * 50)
print("deep")
""",
        endings=(Ending.EXITED, Ending.DISK, Ending.BROKEN, *TIME),
    ),
    Attack(
        name="descriptor-flood",
        source="""
held = []
try:
    for _ in range(100_000):
        held.append(os.open("/dev/null", os.O_RDONLY))
except OSError as error:
    print("REFUSED", error.errno)
print("few" if len(held) <= 64 else "DONE", len(held))
""",
        says="few",
    ),
    Attack(
        name="core-dump",
        source="""
import resource
attempt("raise", lambda: resource.setrlimit(resource.RLIMIT_CORE, (1 << 30, 1 << 30)))
if os.fork() == 0:
    os.abort()
_, status = os.wait()
print("dumped" if os.WCOREDUMP(status) else "no dump", os.listdir("."))
attempt("raise processes", lambda: resource.setrlimit(resource.RLIMIT_NPROC, (9999, 9999)))
attempt("raise files", lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (9999, 9999)))
""",
        refused=3,
        says="no dump",
    ),
    Attack(
        name="endless-recursion",
        source="""
sys.setrecursionlimit(10**9)
print("begin", flush=True)
def fall(): return fall() + 1
fall()
""",
        endings=(*MEMORY, *TIME),
        says="begin",
    ),
    Attack(
        name="busy-on-every-core",
        source="""
print("begin", flush=True)
for _ in range(8):
    if os.fork() == 0:
        break
while True:
    pass
""",
        endings=TIME,
        says="begin",
    ),
    Attack(
        name="sleeps-past-the-end",
        source='print("begin", flush=True); time.sleep(3600)',
        endings=TIME,
        says="begin",
    ),
)

KERNEL = (
    Attack(
        name="namespaces",
        source="""
for flag in (0x20000, 0x10000000, 0x20000000, 0x40000000, 0x04000000, 0x08000000, 0x02000000):
    attempt(f"unshare {flag:x}", lambda: call(272, flag))
attempt("clone", lambda: call(56, 0x10000000 | 17, 0, 0, 0, 0))
attempt("clone3", lambda: call(435, 0, 0))
attempt("setns", lambda: call(308, 0, 0))
""",
        refused=10,
    ),
    Attack(
        name="mounts",
        source="""
attempt("mount", lambda: call(165, b"none", b"/sandbox", b"tmpfs", 0, None))
attempt("remount", lambda: call(165, b"none", b"/", None, 32, None))
attempt("bind", lambda: call(165, b"/", b".", None, 4096, None))
attempt("umount", lambda: call(166, b"/proc", 2))
attempt("pivot", lambda: call(155, b".", b"."))
attempt("chroot", lambda: os.chroot("."))
attempt("fsopen", lambda: call(430, b"tmpfs", 0))
attempt("open_tree", lambda: call(428, -100, b"/", 1))
attempt("handle", lambda: call(304, -100, b"", 0))
""",
        refused=9,
    ),
    Attack(
        name="becoming-root",
        source="""
attempt("setuid", lambda: os.setuid(0))
attempt("setgid", lambda: os.setgid(0))
attempt("groups", lambda: os.setgroups([0]))
attempt("resuid", lambda: os.setresuid(0, 0, 0))
class Header(ctypes.Structure): _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]
full = (ctypes.c_uint32 * 6)(*[0xFFFFFFFF] * 6)
attempt("capset", lambda: call(126, ctypes.byref(Header(0x20080522, 0)), full))
own = (ctypes.c_uint32 * 6)()
call(125, ctypes.byref(Header(0x20080522, 0)), own)
print("no capability" if not any(own) else f"DONE {list(own)}")
print("no new privileges" if libc.prctl(39, 0, 0, 0, 0) == 1 else "DONE")
for path in ("/usr/bin/su", "/usr/bin/passwd", "/usr/bin/sudo"):
    if os.path.exists(path):
        answer = subprocess.run([path, "-c", "id"], stdin=subprocess.DEVNULL, capture_output=True)
        print("DONE" if b"uid=0" in answer.stdout else "not root")
""",
        refused=5,
        says="no capability\nno new privileges",
    ),
    Attack(
        name="kernel-interfaces",
        source="""
for name, number in {"bpf": 321, "perf": 298, "io_uring_setup": 425, "io_uring_enter": 426,
                     "io_uring_register": 427, "userfaultfd": 323, "keyctl": 250, "add_key": 248,
                     "request_key": 249, "init_module": 175, "finit_module": 313, "kexec": 246,
                     "syslog": 103, "iopl": 172, "personality": 135, "fanotify": 300,
                     "newer": 5000}.items():
    attempt(name, lambda: call(number, 0, 0, 0, 0, 0))
""",
        refused=17,
    ),
    Attack(
        name="the-whole-machine",
        source="""
attempt("reboot", lambda: call(169, 0xFEE1DEAD, 672274793, 0x1234567, 0))
attempt("host name", lambda: socket.sethostname("owned"))
attempt("clock", lambda: time.clock_settime(time.CLOCK_REALTIME, 0.0))
attempt("swap", lambda: call(168, b"/swap"))
attempt("sysctl", lambda: open("/proc/sys/kernel/hostname", "w").write("owned"))
attempt("sysrq", lambda: open("/proc/sysrq-trigger", "w").write("b"))
attempt("oom", lambda: open("/proc/1/oom_score_adj", "w").write("1000"))
attempt("cgroup", lambda: os.listdir("/sys/fs/cgroup"))
attempt("nice", lambda: os.nice(-10))
attempt("real time", lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1)))
""",
        refused=10,
    ),
    Attack(
        name="other-machine-interface",
        source="""
attempt("x32", lambda: call(0x40000000 | 39))
""",
        endings=(Ending.EXITED,),
        never_says="DONE",
    ),
)

ATTACKS = (*READS_FILES, *NETWORK, *PROCESSES, *RESOURCES, *KERNEL)
