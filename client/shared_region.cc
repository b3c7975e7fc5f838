#include "client/shared_region.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <limits>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/checked_math.h"
#include "base/status_macros.h"
#include "base/unique_fd.h"
#include "wire/shm_protocol.h"

namespace attnd::client {
namespace {

constexpr int64_t kAlignment = 64;

absl::StatusOr<UniqueFd> MakeMemory(int64_t size_bytes) {
  UniqueFd fd(memfd_create("attnd", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!fd.valid() || ftruncate(fd.get(), size_bytes) != 0 ||
      fcntl(fd.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) !=
          0) {
    return absl::ErrnoToStatus(
        errno,
        absl::StrCat("cannot create shared memory of ", size_bytes, " bytes"));
  }
  return fd;
}

// Makes the system call `call` until no signal interrupts it, and returns its
// result. The timeouts of the socket start again with each attempt. So that
// many signals cannot extend the wait beyond twice `patience`, there is no new
// attempt after `patience`.
template <typename Call>
ssize_t Uninterrupted(absl::Duration patience, const Call& call) {
  const absl::Time end = absl::Now() + patience;
  for (;;) {
    const ssize_t result = call();
    if (result >= 0 || errno != EINTR || absl::Now() > end) return result;
  }
}

absl::StatusOr<UniqueFd> Connect(const std::string& path,
                                 absl::Duration patience) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof(address.sun_path)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "shm_socket: expected a path of at most ", sizeof(address.sun_path) - 1,
        " bytes, got ", path.size()));
  }
  std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
  UniqueFd fd(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  // A timeout of 0 would mean that there is none.
  const timeval timeout =
      absl::ToTimeval(std::max(patience, absl::Microseconds(1)));
  // The timeout for sending applies to connect, too.
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

// Ignores errors. If the server has already closed the connection, its reply,
// which the caller reads next, says why.
void SendRegister(const UniqueFd& connection, const UniqueFd& memory,
                  absl::Duration patience) {
  std::string message = EncodeRegister();
  iovec part{.iov_base = message.data(), .iov_len = message.size()};
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

absl::StatusOr<std::string> Register(const UniqueFd& connection,
                                     const UniqueFd& memory,
                                     absl::Duration patience) {
  SendRegister(connection, memory, patience);
  char buffer[kMaxShmReplyBytes];
  const ssize_t size = Uninterrupted(patience, [&] {
    return recv(connection.get(), buffer, sizeof(buffer), 0);
  });
  if (size < 0) {
    return absl::UnavailableError(absl::StrCat(
        "no reply from the shared-memory socket: ", std::strerror(errno)));
  }
  return ParseRegistered({buffer, static_cast<size_t>(size)});
}

}  // namespace

class SharedRegion::Impl {
 public:
  // Takes ownership of the mapping at `data`.
  Impl(UniqueFd connection, std::string handle, std::byte* data,
       int64_t size_bytes)
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
      return absl::ResourceExhaustedError(absl::StrCat(
          "count: expected 0 to ", left_bytes / SizeOf(type),
          " elements, because ", left_bytes, " of the ", size_bytes_,
          " bytes of the region are free, got ", count));
    }
    const int64_t bytes = count * SizeOf(type);
    Elements elements(type, {data_ + used_bytes_, static_cast<size_t>(bytes)},
                      {.handle = handle_, .offset_bytes = used_bytes_});
    used_bytes_ += RoundUp(bytes, kAlignment);
    return elements;
  }

  int64_t size_bytes() const { return size_bytes_; }

 private:
  const UniqueFd connection_;  // closing it ends the registration
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
  // Elements start at multiples of kAlignment, so the last ones can use all
  // bytes.
  const int64_t rounded = RoundUp(size_bytes, kAlignment);
  ATTND_ASSIGN_OR_RETURN(UniqueFd connection, Connect(shm_socket, patience));
  ATTND_ASSIGN_OR_RETURN(const UniqueFd memory, MakeMemory(rounded));
  ATTND_ASSIGN_OR_RETURN(std::string handle,
                         Register(connection, memory, patience));
  void* const data = mmap(nullptr, static_cast<size_t>(rounded),
                          PROT_READ | PROT_WRITE, MAP_SHARED, memory.get(), 0);
  if (data == MAP_FAILED) {
    return absl::ErrnoToStatus(errno, "cannot map shared memory");
  }
  return SharedRegion(std::make_unique<SharedRegion::Impl>(
      std::move(connection), std::move(handle), static_cast<std::byte*>(data),
      rounded));
}

}  // namespace attnd::client
