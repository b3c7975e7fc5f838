// Counts what the frames of one connection make the server hold, and says when
// that is too much. Knows the frames of HTTP/2, but no gRPC.
#ifndef ATTND_SERVER_CONNECTIONS_CONNECTION_H_
#define ATTND_SERVER_CONNECTIONS_CONNECTION_H_

#include <sys/epoll.h>
#include <sys/types.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <utility>

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

  // Counts one event. Returns false if it is one too many, and does not count
  // it then.
  bool Take(SteadyTime now);
  // How many events still count at `now`. Time takes `per_second` of them off
  // each second.
  double recent(SteadyTime now) const;

 private:
  const Rate rate_;
  double recent_ = 0;
  SteadyTime counted_at_{};
};

// What one connection may do. gRPC 1.51 does not bound these itself, or only
// for clients that acknowledge its settings.
struct ConnectionLimits {
  // The most bytes on the wire of one block of request headers. gRPC accepts 16
  // KiB of headers, but checks that after it has parsed all of them.
  int64_t header_block_bytes = int64_t{64} << 10;
  // The most that a GOAWAY frame may take. gRPC keeps its text in memory, of up
  // to 4 MiB, and for as long as the frame is not complete.
  int64_t goaway_bytes = int64_t{4} << 10;
  // Calls that are open at a time: begun, not answered and not reset.
  int64_t open_calls = 2048;
  // Calls that the client resets before they are answered. HTTP/2 counts them
  // as closed, although gRPC goes on with each of them for a while.
  Rate resets{.burst = 2048, .per_second = 500};
  // PING and SETTINGS frames. gRPC answers each with a frame, which stays in
  // memory until the client reads it.
  Rate answered_frames{.burst = 2048, .per_second = 200};
};

// What all connections of a server hold together.
struct ConnectionTotals {
  explicit ConnectionTotals(const Rate& reset_rate) : resets(reset_rate) {}

  std::atomic<int64_t> open_calls = 0;
  // Calls of connections that were ended, and that gRPC has not dropped yet.
  std::atomic<int64_t> ending_calls = 0;
  std::mutex mutex;
  RateLimit resets;  // guarded by `mutex`
};

// Thread-safe: gRPC reads and writes a connection in different threads, and the
// guard's thread looks at all connections.
class Connection {
 public:
  // What a call takes in gRPC before it is admitted. Measured with gRPC 1.51:
  // 12 KiB if it is open, 16 KiB if it was reset.
  static constexpr int64_t kCallBytes = int64_t{16} << 10;
  // Within each timeout, this much of an unfinished message has to arrive, or
  // its end.
  static constexpr int64_t kProgressBytes = int64_t{64} << 10;
  // How much of a connection gRPC may read in one turn. Otherwise gRPC reads up
  // to 4 MiB at a time, which can take 40 ms, and goes on until the socket is
  // empty, which a fast sender can prevent until a large message is over.
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
    kCrowded,  // there are too many resets on all connections together
  };

  // Counts `size` bytes that the client sent. Call it before gRPC sees them.
  Verdict Received(const char* data, size_t size, SteadyTime now);
  // Counts `size` bytes that were sent to the client.
  void Sent(const char* data, size_t size);

  // Returns why the connection has to end at `now` because its client left
  // something unfinished for `timeout`, or nothing if it does not. The reasons
  // are a message of which less than kProgressBytes arrived, a block of headers
  // that did not end, and no frame at all since the connection was accepted.
  std::string_view Overdue(SteadyTime now, std::chrono::nanoseconds timeout);

  // Shuts the socket down, so that gRPC drops the connection and its calls.
  // `reason` is a string literal. Later reasons are ignored. False if the
  // connection was ended before or its socket is closed.
  bool End(std::string_view reason);
  // Says that the socket is about to be closed. It is not used after that.
  void Closed();

  // Notes how gRPC waits for the socket, so that Rearm can wake gRPC.
  void WatchedBy(int epoll, const epoll_event& event);
  // Whether WatchedBy was called.
  bool can_rearm() const { return can_rearm_.load(); }
  // Makes gRPC read the socket again although nothing new has arrived. Does
  // nothing before WatchedBy.
  void Rearm();

  // Returns true when gRPC has read kTurnBytes since the turn of this
  // connection began: other connections should have a turn then. A new turn
  // begins.
  bool TurnIsOver();
  // Whether the connection is in the guard's list of connections that wait.
  std::atomic<bool>& paused() { return paused_; }

  // Empty until End, or until Received found kBroken.
  std::string_view end_reason() const;
  const std::string& peer() const { return peer_; }
  int64_t open_calls() const { return open_calls_.load(); }
  // An estimate of what the connection makes gRPC hold at `now`: its calls, its
  // unfinished messages, and the calls that it reset recently.
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

  // Handle what the client sends. Call them with `mutex_` held. They return
  // false if the connection has to end.
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
  bool ended_ = false;        // by End
  std::string_view end_reason_;
  FrameReader in_{FrameReader::kClientPrefaceBytes};
  FrameReader out_{0};
  // By stream. No table of Abseil's, since the sanitizers change its layout and
  // Debian's Abseil is built without them.
  std::map<uint32_t, Call> calls_;
  std::atomic<int64_t> open_calls_ = 0;  // calls_.size()
  uint32_t last_stream_ = 0;             // the highest that was begun
  int64_t header_block_bytes_ = -1;      // -1: none is open
  SteadyTime header_block_at_{};
  bool has_frame_ = false;
  bool crowded_ = false;
  RateLimit resets_;
  RateLimit answered_frames_;
  SteadyTime idle_since_;
};

}  // namespace attnd::server

#endif  // ATTND_SERVER_CONNECTIONS_CONNECTION_H_
