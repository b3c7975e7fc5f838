#include "client/shared_region.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <limits>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

namespace attnd::client {
namespace {

static_assert(std::endian::native == std::endian::little,
              "numbers of the protocol are copied as they lie in memory");

// docs/shared-memory.md has the protocol.
constexpr char kRegister[] = {'A', 'S', 'H', 'M', 1, 0, 1, 0};
constexpr size_t kHeaderBytes = sizeof(kRegister);
constexpr size_t kHandleBytes = 16;
constexpr size_t kMaxReplyBytes = 1024;
constexpr char kErrorType = 3;
constexpr int64_t kAlignment = 64;

int64_t RoundUp(int64_t bytes) {
  return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

class Fd {
 public:
  explicit Fd(int fd) : fd_(fd) {}
  Fd(Fd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Fd& operator=(Fd&&) = delete;
  ~Fd() {
    if (fd_ >= 0) close(fd_);
  }
  int get() const { return fd_; }
  bool valid() const { return fd_ >= 0; }

 private:
  int fd_;
};

absl::StatusOr<Fd> MakeMemory(int64_t size_bytes) {
  Fd fd(memfd_create("attnd", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!fd.valid() || ftruncate(fd.get(), size_bytes) != 0 ||
      fcntl(fd.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) !=
          0) {
    return absl::ErrnoToStatus(
        errno,
        absl::StrCat("cannot make shared memory of ", size_bytes, " bytes"));
  }
  return fd;
}

// What `call` answers once no signal has cut it short. The sockets' timeouts
// start anew after each, so that no stream of signals goes on for longer than
// twice `patience`.
template <typename Call>
ssize_t Uninterrupted(absl::Duration patience, const Call& call) {
  const absl::Time end = absl::Now() + patience;
  for (;;) {
    const ssize_t result = call();
    if (result >= 0 || errno != EINTR || absl::Now() > end) return result;
  }
}

absl::StatusOr<Fd> Connect(const std::string& path, absl::Duration patience) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof(address.sun_path)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "shm_socket: expected a path of at most ", sizeof(address.sun_path) - 1,
        " bytes, got ", path.size()));
  }
  std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
  Fd fd(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  // 0 would be no timeout.
  const timeval timeout =
      absl::ToTimeval(std::max(patience, absl::Microseconds(1)));
  // The one for sending bounds connect, too.
  if (!fd.valid() ||
      setsockopt(fd.get(), SOL_SOCKET, SO_SNDTIMEO, &timeout,
                 sizeof(timeout)) != 0 ||
      setsockopt(fd.get(), SOL_SOCKET, SO_RCVTIMEO, &timeout,
                 sizeof(timeout)) != 0 ||
      Uninterrupted(patience, [&] {
        return connect(fd.get(), reinterpret_cast<const sockaddr*>(&address),
                       sizeof(address));
      }) != 0) {
    return absl::UnavailableError(
        absl::StrCat("cannot connect to ", path, ": ", std::strerror(errno)));
  }
  return fd;
}

// Where the server has closed the connection already, its reply says why.
void SendRegister(const Fd& connection, const Fd& memory,
                  absl::Duration patience) {
  char message[kHeaderBytes];
  std::memcpy(message, kRegister, sizeof(message));
  iovec part{.iov_base = message, .iov_len = sizeof(message)};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr header{};
  header.msg_iov = &part;
  header.msg_iovlen = 1;
  header.msg_control = control;
  header.msg_controllen = sizeof(control);
  cmsghdr* const rights = CMSG_FIRSTHDR(&header);
  rights->cmsg_level = SOL_SOCKET;
  rights->cmsg_type = SCM_RIGHTS;
  rights->cmsg_len = CMSG_LEN(sizeof(int));
  const int fd = memory.get();
  std::memcpy(CMSG_DATA(rights), &fd, sizeof(fd));
  Uninterrupted(patience, [&] {
    return sendmsg(connection.get(), &header, MSG_NOSIGNAL);
  });
}

absl::StatusOr<std::string> Register(const Fd& connection, const Fd& memory,
                                     absl::Duration patience) {
  SendRegister(connection, memory, patience);
  char buffer[kMaxReplyBytes];
  const ssize_t size = Uninterrupted(patience, [&] {
    return recv(connection.get(), buffer, sizeof(buffer), 0);
  });
  if (size < 0) {
    return absl::UnavailableError(absl::StrCat(
        "no reply of the shared-memory socket: ", std::strerror(errno)));
  }
  const absl::string_view reply(buffer, static_cast<size_t>(size));
  const absl::string_view kind = reply.substr(0, kHeaderBytes);
  if (kind == absl::string_view(kRegister, sizeof(kRegister)) &&
      reply.size() >= kHeaderBytes + kHandleBytes) {
    return std::string(reply.substr(kHeaderBytes, kHandleBytes));
  }
  int32_t code = 0;
  if (kind.size() == kHeaderBytes && kind[6] == kErrorType &&
      reply.size() >= kHeaderBytes + sizeof(code)) {
    std::memcpy(&code, &reply[kHeaderBytes], sizeof(code));
    return absl::Status(static_cast<absl::StatusCode>(code),
                        reply.substr(kHeaderBytes + sizeof(code)));
  }
  return absl::InternalError(
      "the shared-memory socket answered what is no reply");
}

}  // namespace

class SharedRegion::Impl {
 public:
  // Takes over `data`, which is mapped.
  Impl(Fd connection, std::string handle, std::byte* data, int64_t size_bytes)
      : connection_(std::move(connection)),
        handle_(std::move(handle)),
        data_(data),
        size_bytes_(size_bytes) {}
  ~Impl() { munmap(data_, static_cast<size_t>(size_bytes_)); }
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;

  absl::StatusOr<Elements> Allocate(DataType type, int64_t count) {
    const int64_t left_bytes = size_bytes_ - used_bytes_;
    if (count < 0 || count > left_bytes / SizeOf(type)) {
      return absl::ResourceExhaustedError(
          absl::StrCat("a shared region has ", left_bytes, " of its ",
                       size_bytes_, " bytes left: expected 0 to ",
                       left_bytes / SizeOf(type), " elements, got ", count));
    }
    const int64_t bytes = count * SizeOf(type);
    Elements elements(type, {data_ + used_bytes_, static_cast<size_t>(bytes)},
                      {.handle = handle_, .offset_bytes = used_bytes_});
    used_bytes_ += RoundUp(bytes);
    return elements;
  }

  int64_t size_bytes() const { return size_bytes_; }

 private:
  const Fd connection_;  // the region lives as long
  const std::string handle_;
  std::byte* const data_;
  const int64_t size_bytes_;
  int64_t used_bytes_ = 0;
};

SharedRegion::SharedRegion(std::unique_ptr<Impl> impl)
    : impl_(std::move(impl)) {}
SharedRegion::SharedRegion(SharedRegion&& other) noexcept = default;
SharedRegion& SharedRegion::operator=(SharedRegion&& other) noexcept = default;
SharedRegion::~SharedRegion() = default;

absl::StatusOr<Elements> SharedRegion::Allocate(DataType type, int64_t count) {
  return impl_->Allocate(type, count);
}

int64_t SharedRegion::size_bytes() const { return impl_->size_bytes(); }

absl::StatusOr<SharedRegion> RegisterRegion(const std::string& shm_socket,
                                            int64_t size_bytes,
                                            absl::Duration patience) {
  constexpr int64_t kMaxSize = std::numeric_limits<int64_t>::max() - kAlignment;
  if (size_bytes <= 0 || size_bytes > kMaxSize) {
    return absl::InvalidArgumentError(absl::StrCat(
        "size_bytes: expected 1 to ", kMaxSize, ", got ", size_bytes));
  }
  // So that every part has a start and an end of its own.
  const int64_t rounded = RoundUp(size_bytes);
  absl::StatusOr<Fd> connection = Connect(shm_socket, patience);
  if (!connection.ok()) return connection.status();
  const absl::StatusOr<Fd> memory = MakeMemory(rounded);
  if (!memory.ok()) return memory.status();
  absl::StatusOr<std::string> handle = Register(*connection, *memory, patience);
  if (!handle.ok()) return handle.status();
  void* const data = mmap(nullptr, static_cast<size_t>(rounded),
                          PROT_READ | PROT_WRITE, MAP_SHARED, memory->get(), 0);
  if (data == MAP_FAILED) {
    return absl::ErrnoToStatus(errno, "cannot map shared memory");
  }
  return SharedRegion(std::make_unique<SharedRegion::Impl>(
      *std::move(connection), *std::move(handle), static_cast<std::byte*>(data),
      rounded));
}

}  // namespace attnd::client
