#include "server/connections/socket_hooks.h"

#include <dlfcn.h>
#include <openssl/crypto.h>
#include <openssl/ssl.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstddef>
#include <utility>

#include "base/tsan_ordering.h"

namespace attnd::server {
namespace {

struct Followed {
  Followed(std::shared_ptr<Connection> its_connection,
           std::shared_ptr<ConnectionGuard> its_guard, bool its_encrypted)
      : connection(std::move(its_connection)),
        guard(std::move(its_guard)),
        encrypted(its_encrypted) {}

  const std::shared_ptr<Connection> connection;
  const std::shared_ptr<ConnectionGuard> guard;
  const bool encrypted;
};

constexpr size_t kMaxDescriptors = size_t{1} << 20;

// The sockets that are followed, by descriptor; null for other descriptors.
// Pages that are never touched take no memory. The caller of recvmsg or sendmsg
// keeps the descriptor open during the call, so its entry stays.
std::array<std::atomic<Followed*>, kMaxDescriptors> followed;

Followed* Find(int fd) {
  if (fd < 0 || static_cast<size_t>(fd) >= kMaxDescriptors) return nullptr;
  return followed[static_cast<size_t>(fd)].load(std::memory_order_acquire);
}

void Forget(int fd) {
  if (Find(fd) == nullptr) return;
  const std::unique_ptr<Followed> entry(
      followed[static_cast<size_t>(fd)].exchange(nullptr));
  if (!entry) return;
  // gRPC closes a socket after everything else that it does with it.
  TsanAcquire(entry.get());
  entry->guard->Forget(entry->connection);
}

// The entry of a descriptor while one of the functions below uses it.
class Use {
 public:
  explicit Use(int fd) : entry_(Find(fd)) {}
  ~Use() {
    if (entry_ != nullptr) TsanRelease(entry_);
  }
  Use(const Use&) = delete;
  Use& operator=(const Use&) = delete;

  explicit operator bool() const { return entry_ != nullptr; }
  Followed* operator->() const { return entry_; }

 private:
  Followed* const entry_;
};

// What the SSL objects that this thread creates belong to.
thread_local const Followed* handed_over = nullptr;

// The index at which OpenSSL keeps, for each SSL object, the connection that it
// belongs to. OpenSSL calls the first function when an object is created, and
// the last one when it is freed.
int TlsIndex() {
  static const int index = SSL_get_ex_new_index(
      0, nullptr,
      [](void*, void*, CRYPTO_EX_DATA* data, int at, long, void*) {
        if (handed_over == nullptr) return;
        auto* const entry = new Followed(*handed_over);
        TsanRelease(entry);
        CRYPTO_set_ex_data(data, at, entry);
      },
      nullptr,
      [](void*, void* followed_by, CRYPTO_EX_DATA*, int, long, void*) {
        TsanAcquire(followed_by);
        delete static_cast<Followed*>(followed_by);
      });
  return index;
}

Followed* FindTls(const SSL* ssl) {
  return static_cast<Followed*>(SSL_get_ex_data(ssl, TlsIndex()));
}

template <typename Function>
Function* Next(const char* name) {
  return reinterpret_cast<Function*>(dlsym(RTLD_NEXT, name));
}

// Calls `visit(data, size)` for the parts of the message that make up its first
// `bytes` bytes, until one call returns false. Returns false in that case, and
// true otherwise.
template <typename Visit>
bool ForEachPart(const msghdr& message, ssize_t bytes, Visit&& visit) {
  auto left = static_cast<size_t>(bytes);
  for (size_t i = 0; i < message.msg_iovlen && left > 0; ++i) {
    const iovec& part = message.msg_iov[i];
    const size_t size = std::min(left, part.iov_len);
    if (!visit(static_cast<const char*>(part.iov_base), size)) return false;
    left -= size;
  }
  return true;
}

// Calls `read`, which fills `message`. Meanwhile the parts of the message are
// shortened to `max_bytes` in total.
template <typename Read>
ssize_t ReadAtMost(size_t max_bytes, msghdr& message, Read&& read) {
  const auto parts = message.msg_iovlen;
  size_t last = 0;
  for (size_t capacity = 0; last < parts; ++last) {
    capacity += message.msg_iov[last].iov_len;
    if (capacity >= max_bytes) {
      iovec& part = message.msg_iov[last];
      const size_t part_bytes =
          std::exchange(part.iov_len, part.iov_len - (capacity - max_bytes));
      message.msg_iovlen = last + 1;
      const ssize_t bytes = read();
      message.msg_iovlen = parts;
      part.iov_len = part_bytes;
      return bytes;
    }
  }
  return read();
}

}  // namespace

bool FollowSocket(int fd, std::shared_ptr<Connection> connection,
                  std::shared_ptr<ConnectionGuard> guard, bool encrypted) {
  if (fd < 0 || static_cast<size_t>(fd) >= kMaxDescriptors) return false;
  auto entry = std::make_unique<Followed>(std::move(connection),
                                          std::move(guard), encrypted);
  delete followed[static_cast<size_t>(fd)].exchange(entry.release());
  return true;
}

TlsHandover::TlsHandover(int fd) {
  TlsIndex();
  handed_over = Find(fd);
}

TlsHandover::~TlsHandover() { handed_over = nullptr; }

absl::Status CheckSocketHooks() {
  if (dlsym(RTLD_DEFAULT, "recvmsg") == reinterpret_cast<void*>(&recvmsg) &&
      dlsym(RTLD_DEFAULT, "sendmsg") == reinterpret_cast<void*>(&sendmsg) &&
      dlsym(RTLD_DEFAULT, "epoll_ctl") == reinterpret_cast<void*>(&epoll_ctl) &&
      dlsym(RTLD_DEFAULT, "close") == reinterpret_cast<void*>(&close) &&
      dlsym(RTLD_DEFAULT, "SSL_read") == reinterpret_cast<void*>(&SSL_read) &&
      dlsym(RTLD_DEFAULT, "SSL_write") == reinterpret_cast<void*>(&SSL_write)) {
    return absl::OkStatus();
  }
  return absl::InternalError(
      "this program does not export its own recvmsg, sendmsg, epoll_ctl, "
      "close, "
      "SSL_read and SSL_write, which attnd needs to limit connections: link it "
      "with -Wl,--export-dynamic-symbol=recvmsg, and the same for the others");
}

}  // namespace attnd::server

using attnd::server::Use;

extern "C" {

__attribute__((visibility("default"))) ssize_t recvmsg(int fd, msghdr* message,
                                                       int flags) {
  static const auto next =
      attnd::server::Next<ssize_t(int, msghdr*, int)>("recvmsg");
  const Use entry(fd);
  if (!entry) return next(fd, message, flags);
  const size_t may_read = entry->guard->MayRead(entry->connection);
  if (may_read == 0) {
    errno = EAGAIN;
    return -1;
  }
  const ssize_t bytes = attnd::server::ReadAtMost(
      may_read, *message, [&] { return next(fd, message, flags); });
  if (bytes <= 0) return bytes;
  if (entry->encrypted) {
    entry->connection->ReceivedEncrypted();
    return bytes;
  }
  const auto now = std::chrono::steady_clock::now();
  const bool goes_on = attnd::server::ForEachPart(
      *message, bytes, [&](const char* data, size_t size) {
        return entry->guard->Received(*entry->connection, data, size, now);
      });
  if (goes_on) return bytes;
  errno = ECONNRESET;
  return -1;
}

__attribute__((visibility("default"))) ssize_t sendmsg(int fd,
                                                       const msghdr* message,
                                                       int flags) {
  static const auto next =
      attnd::server::Next<ssize_t(int, const msghdr*, int)>("sendmsg");
  const ssize_t bytes = next(fd, message, flags);
  if (bytes <= 0) return bytes;
  const int error = errno;
  const Use entry(fd);
  if (!entry || entry->encrypted) return bytes;
  attnd::server::ForEachPart(*message, bytes,
                             [&](const char* data, size_t size) {
                               entry->connection->Sent(data, size);
                               return true;
                             });
  errno = error;
  return bytes;
}

__attribute__((visibility("default"))) int epoll_ctl(
    int epoll, int operation, int fd, epoll_event* event) noexcept {
  static const auto next =
      attnd::server::Next<int(int, int, int, epoll_event*)>("epoll_ctl");
  const Use entry(fd);
  if (entry && operation == EPOLL_CTL_ADD) {
    entry->connection->WatchedBy(epoll, *event);
  }
  return next(epoll, operation, fd, event);
}

__attribute__((visibility("default"))) int close(int fd) {
  static const auto next = attnd::server::Next<int(int)>("close");
  attnd::server::Forget(fd);
  return next(fd);
}

__attribute__((visibility("default"))) int SSL_read(SSL* ssl, void* data,
                                                    int size) {
  static const auto next =
      attnd::server::Next<int(SSL*, void*, int)>("SSL_read");
  const int bytes = next(ssl, data, size);
  if (bytes <= 0) return bytes;
  auto* const entry = attnd::server::FindTls(ssl);
  if (entry == nullptr) return bytes;
  const attnd::TsanTurn turn(entry);
  const bool goes_on = entry->guard->Received(
      *entry->connection, static_cast<const char*>(data),
      static_cast<size_t>(bytes), std::chrono::steady_clock::now());
  return goes_on ? bytes : -1;
}

__attribute__((visibility("default"))) int SSL_write(SSL* ssl, const void* data,
                                                     int size) {
  static const auto next =
      attnd::server::Next<int(SSL*, const void*, int)>("SSL_write");
  const int bytes = next(ssl, data, size);
  if (bytes <= 0) return bytes;
  auto* const entry = attnd::server::FindTls(ssl);
  if (entry == nullptr) return bytes;
  const attnd::TsanTurn turn(entry);
  entry->connection->Sent(static_cast<const char*>(data),
                          static_cast<size_t>(bytes));
  return bytes;
}

}  // extern "C"
