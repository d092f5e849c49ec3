"""Lists a directory and does not take the answer: the buffer is memory whose first touch waits for us (userfaultfd).
Prints "held" when the kernel waits; lets it go on when a line comes, or when it ends."""
import ctypes, fcntl, mmap, os, platform, struct, sys, threading

USERFAULTFD, GETDENTS = {"x86_64": (323, 217), "aarch64": (282, 61)}[platform.machine()]
UFFDIO_API, UFFDIO_REGISTER, UFFDIO_ZEROPAGE = 0xC018AA3F, 0xC020AA00, 0xC020AA04
PAGE = mmap.PAGESIZE

libc = ctypes.CDLL(None, use_errno=True)
fault = libc.syscall(USERFAULTFD, os.O_CLOEXEC)
assert fault >= 0, os.strerror(ctypes.get_errno())
fcntl.ioctl(fault, UFFDIO_API, struct.pack("QQQ", 0xAA, 0, 0))
memory = mmap.mmap(-1, 8 * PAGE)
address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
fcntl.ioctl(fault, UFFDIO_REGISTER, struct.pack("QQQQ", address, 8 * PAGE, 1, 0))
directory = os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECTORY)
lister = threading.Thread(
    target=lambda: libc.syscall(GETDENTS, directory, ctypes.c_void_p(address), 8 * PAGE), daemon=True
)
lister.start()
os.read(fault, 32)
print("held", flush=True)
sys.stdin.readline()
fcntl.ioctl(fault, UFFDIO_ZEROPAGE, struct.pack("QQQq", address, 8 * PAGE, 0, 0))
lister.join()
print("free", flush=True)
