// One connection of a client: what the frames that cross it make the server
// hold, and when that is too much. Knows HTTP/2's frames; nothing of gRPC.
#ifndef ATTND_SERVER_CONNECTIONS_CONNECTION_H_
#define ATTND_SERVER_CONNECTIONS_CONNECTION_H_

#include <sys/epoll.h>
#include <sys/types.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "server/connections/frame_reader.h"

namespace attnd::server {

using SteadyTime = std::chrono::steady_clock::time_point;

// How often something may happen: `burst` times at once, and `per_second` times
// a second in the long run.
struct Rate {
  double burst = 0;
  double per_second = 0;
};

// Says whether a Rate is kept (a token bucket). Not thread-safe.
class RateLimit {
 public:
  explicit RateLimit(const Rate& rate) : rate_(rate) {}

  // Counts one event; false where it is one too many.
  bool Take(SteadyTime now);
  // How many recent events are counted at `now`: those that have not been made
  // up for by time.
  double recent(SteadyTime now) const;

 private:
  const Rate rate_;
  double recent_ = 0;
  SteadyTime counted_at_{};
};

// What one connection may do. gRPC 1.51 does not bound these by itself, or only
// for clients that acknowledge its settings.
struct ConnectionLimits {
  // The most that one block of request headers may take on the wire. gRPC
  // accepts 16 KiB of them, after it has parsed all.
  int64_t header_block_bytes = int64_t{64} << 10;
  // Calls that are open at a time: begun, not answered and not reset.
  int64_t open_calls = 2048;
  // Calls that the client resets before they are answered. gRPC goes on with
  // each of them for a while, and HTTP/2 counts them as closed.
  Rate resets{.burst = 2048, .per_second = 500};
  // PING and SETTINGS frames, each of which is answered by a frame that waits
  // in memory for the client to read it.
  Rate answered_frames{.burst = 2048, .per_second = 200};
};

// What all connections of a server hold together.
struct ConnectionTotals {
  explicit ConnectionTotals(const Rate& reset_rate) : resets(reset_rate) {}

  std::atomic<int64_t> open_calls = 0;
  // Calls of connections that were ended, which gRPC has not dropped yet.
  std::atomic<int64_t> ending_calls = 0;
  std::mutex mutex;
  RateLimit resets;  // guarded by `mutex`
};

// Thread-safe: gRPC reads and writes a connection in different threads, and a
// watch looks at all of them.
class Connection {
 public:
  // What a call takes in gRPC before it is let in, measured with gRPC 1.51: 12
  // KiB where it is open, 16 KiB where it was reset.
  static constexpr int64_t kCallBytes = int64_t{16} << 10;
  // A message that is on its way has to move by this much in a timeout, or be
  // over.
  static constexpr int64_t kProgressBytes = int64_t{64} << 10;
  // gRPC reads a connection until nothing is left in its socket, which a quick
  // sender can put off for the whole of a large message, and up to 4 MiB at a
  // time, which can take 40 ms.
  static constexpr size_t kTurnBytes = size_t{1} << 20;

  // Does not own `fd`, a connected stream socket. `peer` is for the log.
  Connection(int fd, std::string peer, const ConnectionLimits& limits,
             std::shared_ptr<ConnectionTotals> totals, SteadyTime now);
  ~Connection();
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  enum class Verdict {
    kFine,
    kBroken,   // this connection has to end: see end_reason()
    kCrowded,  // the resets of all connections together are too many
  };

  // Counts `size` bytes that the client sent, before anybody acts on them.
  Verdict Received(const char* data, size_t size, SteadyTime now);
  // Counts `size` bytes that were sent to the client.
  void Sent(const char* data, size_t size);

  // Why the connection has to end for what it has left undone at `now`, or
  // nothing: a message or a block of headers that did not move by
  // kProgressBytes within `timeout`, or no frame at all since it was accepted.
  std::string_view Overdue(SteadyTime now, std::chrono::nanoseconds timeout);

  // Shuts the socket down, so that gRPC drops the connection and its calls.
  // `reason` is a string literal; the first one stays.
  void End(std::string_view reason);
  // The socket is about to be closed: it is not touched any more.
  void Closed();

  // How gRPC waits for the socket, so that Rearm can wake it.
  void WatchedBy(int epoll, const epoll_event& event);
  // Whether WatchedBy was called.
  bool can_rearm() const { return can_rearm_.load(); }
  // Has gRPC read the socket again although nothing new has come. Without
  // effect before WatchedBy.
  void Rearm();

  // Counts what gRPC is about to read in its turn. True once that is more than
  // kTurnBytes: other connections should have a turn then, and a new one of
  // this connection begins.
  bool TurnIsOver();
  // For the guard's list of connections that wait.
  std::atomic<bool>& paused() { return paused_; }

  // Empty until End, or until Received found kBroken.
  std::string_view end_reason() const;
  const std::string& peer() const { return peer_; }
  int64_t open_calls() const { return open_calls_.load(); }
  // An estimate of what the connection makes gRPC hold at `now`: its calls, the
  // messages that are on their way, and what it reset just before.
  int64_t HeldBytes(SteadyTime now) const;
  // How many resets are counted at `now` (see ConnectionLimits::resets).
  double RecentResets(SteadyTime now) const;
  // Since when the connection has no open call; SteadyTime::max() while it has.
  SteadyTime idle_since() const;

 private:
  struct Call {
    SteadyTime moved_at;            // began, or last moved by kProgressBytes
    int64_t bytes_since_moved = 0;  // of DATA payload
    int64_t received_bytes = 0;     // of DATA payload
    bool client_ended = false;      // its message is complete
    bool answered = false;          // the answer has begun
  };

  // The handlers of what the client sends, with `mutex_` held. False where the
  // connection has to end.
  bool BeginFrame(const FrameHeader& frame, SteadyTime now);
  bool Payload(const FrameHeader& frame, size_t bytes, SteadyTime now);
  bool EndFrame(const FrameHeader& frame);
  bool BeginCall(uint32_t stream, SteadyTime now);
  bool Reset(uint32_t stream, SteadyTime now);
  bool Break(std::string_view reason);
  void ForgetCall(uint32_t stream);

  const std::string peer_;
  const ConnectionLimits limits_;
  const std::shared_ptr<ConnectionTotals> totals_;
  const SteadyTime accepted_at_;

  std::atomic<bool> can_rearm_ = false;
  std::atomic<bool> paused_ = false;
  std::atomic<size_t> turn_bytes_ = 0;
  mutable std::mutex mutex_;
  int fd_;          // -1 once closed
  int epoll_ = -1;  // that gRPC waits with for fd_
  epoll_event epoll_event_{};
  int64_t ending_calls_ = 0;  // that were open when the connection was ended
  std::string_view end_reason_;
  FrameReader in_{FrameReader::kClientPrefaceBytes};
  FrameReader out_{0};
  absl::flat_hash_map<uint32_t, Call> calls_;  // by stream
  std::atomic<int64_t> open_calls_ = 0;        // calls_.size()
  uint32_t last_stream_ = 0;                   // the highest that was begun
  int64_t header_block_bytes_ = -1;            // -1: none is open
  SteadyTime header_block_at_{};
  bool has_frame_ = false;
  bool crowded_ = false;
  RateLimit resets_;
  RateLimit answered_frames_;
  SteadyTime idle_since_;
};

}  // namespace attnd::server

#endif  // ATTND_SERVER_CONNECTIONS_CONNECTION_H_
