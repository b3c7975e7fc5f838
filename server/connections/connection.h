// Counts the calls, messages and headers of one client connection by looking at
// its HTTP/2 frames, and decides when the connection exceeds a limit. Does not
// use gRPC.
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

// Tells whether events exceed a Rate (a token bucket). Not thread-safe.
class RateLimit {
 public:
  explicit RateLimit(const Rate& rate) : rate_(rate) {}

  // Counts one event. Returns false, and does not count it, if it exceeds the
  // rate.
  bool Take(SteadyTime now);
  // Returns how many of the counted events still count at `now`: each second,
  // `per_second` of them stop counting.
  double recent(SteadyTime now) const;

 private:
  const Rate rate_;
  double recent_ = 0;
  SteadyTime counted_at_{};
};

// The limits for each single connection. gRPC 1.51 lacks them, or enforces them
// only for clients that acknowledge its HTTP/2 settings.
struct ConnectionLimits {
  // The most bytes on the wire that the headers of one call may have. gRPC
  // accepts 16 KiB of headers, but checks that only after it has parsed all of
  // them.
  int64_t header_block_bytes = int64_t{64} << 10;
  // The largest payload of a GOAWAY frame, in bytes. gRPC keeps the text in the
  // frame, up to 4 MiB, in memory until the frame is complete.
  int64_t goaway_bytes = int64_t{4} << 10;
  // How many calls the connection may have open at the same time. A call is
  // open until it is answered or reset.
  int64_t open_calls = 2048;
  // How often the client may reset a call (RST_STREAM) before it is answered.
  // HTTP/2 counts such a call as closed, although gRPC still works on it for a
  // while.
  Rate resets{.burst = 2048, .per_second = 500};
  // How often the client may send a PING or SETTINGS frame. gRPC answers each
  // with a frame of its own, which stays in memory until the client reads it.
  Rate answered_frames{.burst = 2048, .per_second = 200};
};

// Counts over all connections of a server together. Thread-safe.
struct ConnectionTotals {
  explicit ConnectionTotals(const Rate& reset_rate) : resets(reset_rate) {}

  std::atomic<int64_t> open_calls = 0;
  // Calls that gRPC still has in memory although their connection was ended.
  std::atomic<int64_t> ending_calls = 0;
  std::mutex mutex;
  RateLimit resets;  // guarded by `mutex`
};

// The state of one connection, from when it is accepted until its socket is
// closed. Thread-safe, because gRPC reads and writes a connection in different
// threads, and the guard's thread looks at all connections.
class Connection {
 public:
  // The memory that gRPC takes for a call before the server has accepted its
  // request. Measured with gRPC 1.51: 12 KiB if the call is open, 16 KiB if it
  // was reset.
  static constexpr int64_t kCallBytes = int64_t{16} << 10;
  // The most bytes that gRPC may read from one connection before other
  // connections have a turn. Without this limit, gRPC reads up to 4 MiB at a
  // time, which can take 40 ms, and continues until the socket is empty, which
  // a fast sender can prevent until the end of a large message. For its next
  // read, gRPC also allocates as many bytes as it has read in one turn, and
  // keeps them while the connection is idle.
  static constexpr size_t kTurnBytes = size_t{1} << 20;

  // Does not own `fd`, a connected stream socket. `peer` is the client's
  // address in the log.
  Connection(int fd, std::string peer, const ConnectionLimits& limits,
             std::shared_ptr<ConnectionTotals> totals, SteadyTime now);
  ~Connection();
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  // What has to happen after bytes have been received.
  enum class Verdict {
    kOk,             // nothing
    kMustEnd,        // this connection has to end, because of end_reason()
    kTooManyResets,  // some connection has to end, because all connections
                     // together have too many resets
  };

  // Counts `size` bytes that the client has sent. Call it before gRPC gets
  // them.
  Verdict Received(const char* data, size_t size, SteadyTime now);
  // Call it when the client has sent encrypted bytes. What they decrypt to goes
  // to Received.
  void ReceivedEncrypted() {
    sent_encrypted_.store(true, std::memory_order_relaxed);
  }
  // Returns whether the client has sent encrypted bytes, but nothing could be
  // decrypted: the handshake of TLS is not complete, or has failed.
  bool is_in_handshake() const { return sent_encrypted_ && !has_received_; }
  // Counts `size` bytes that were sent to the client.
  void Sent(const char* data, size_t size);

  // Checks whether the client has left something unfinished for `timeout`. If
  // so, returns the reason why the connection has to end, and otherwise an
  // empty text. Unfinished means that less than kMinProgressBytes of a message
  // have arrived in that time, that the headers of a call are not complete, or
  // that no frame has arrived since the connection was accepted.
  std::string_view Overdue(SteadyTime now, std::chrono::nanoseconds timeout);

  // Shuts the socket down, so that gRPC drops the connection and its calls.
  // `reason`, a string literal, is what end_reason() returns, unless Received
  // has already set one. Returns false if the connection was ended before, or
  // if its socket is closed.
  bool End(std::string_view reason);
  // Call this before the socket is closed. The socket is not used after that.
  void Closed();

  // Remembers that gRPC waits for the socket in the epoll instance `epoll` with
  // `event`, so that Rearm can wake gRPC.
  void WatchedBy(int epoll, const epoll_event& event);
  // Whether WatchedBy was called.
  bool can_rearm() const { return can_rearm_.load(); }
  // Makes gRPC read the socket again although nothing new has arrived. Does
  // nothing if WatchedBy was not called.
  void Rearm();

  // Returns whether gRPC has read kTurnBytes from this connection in its
  // current turn, so that other connections should have theirs. If so, it
  // returns true for two calls in a row, and then the next turn begins. gRPC
  // has to find nothing twice: if it has just read something, it tries again at
  // once, without waiting.
  bool TurnIsOver();
  // Whether ConnectionGuard has this connection in its list of those that wait
  // for their next turn to be read.
  std::atomic<bool>& paused() { return paused_; }

  // Empty until End is called or Received returns kMustEnd.
  std::string_view end_reason() const;
  const std::string& peer() const { return peer_; }
  int64_t open_calls() const { return open_calls_.load(); }
  // Estimates how many bytes gRPC holds for the connection at `now`: for its
  // calls, its unfinished messages, and the calls that the client reset
  // recently.
  int64_t HeldBytes(SteadyTime now) const;
  // Returns how many resets of calls still count at `now`
  // (ConnectionLimits::resets).
  double RecentResets(SteadyTime now) const;
  // The time since when the connection has had no open call, or
  // SteadyTime::max() if it has one.
  SteadyTime idle_since() const;

 private:
  struct Call {
    // When the call began, or when kMinProgressBytes more of its message had
    // last arrived.
    SteadyTime progress_at;
    int64_t bytes_since_progress = 0;  // of DATA payload
    int64_t received_bytes = 0;        // of DATA payload
    bool client_ended = false;         // its message is complete
    bool answered = false;             // the answer has begun
  };

  // These functions handle the parts of frames that the client sends. They
  // return false if the connection has to end. The caller must hold `mutex_`.
  bool BeginFrame(const FrameHeader& frame, SteadyTime now);
  bool Payload(const FrameHeader& frame, size_t bytes, SteadyTime now);
  bool EndFrame(const FrameHeader& frame);
  bool BeginCall(uint32_t stream, SteadyTime now);
  bool Reset(uint32_t stream, SteadyTime now);
  // Sets the reason why the connection has to end. Returns false.
  bool Refuse(std::string_view reason);
  void ForgetCall(uint32_t stream);

  const std::string peer_;
  const ConnectionLimits limits_;
  const std::shared_ptr<ConnectionTotals> totals_;
  const SteadyTime accepted_at_;

  std::atomic<bool> sent_encrypted_ = false;
  std::atomic<bool> has_received_ = false;  // Received was called
  std::atomic<bool> can_rearm_ = false;
  std::atomic<bool> paused_ = false;
  std::atomic<size_t> turn_bytes_ = 0;
  std::atomic<bool> turn_ending_ = false;  // TurnIsOver was true once
  mutable std::mutex mutex_;
  int fd_;          // -1 once closed
  int epoll_ = -1;  // the epoll instance with which gRPC waits for fd_
  epoll_event epoll_event_{};
  int64_t ending_calls_ = 0;  // calls that were open at End
  bool ended_ = false;        // End was called
  std::string_view end_reason_;
  FrameReader in_{FrameReader::kClientPrefaceBytes};
  FrameReader out_{0};
  // The open calls by the number of their HTTP/2 stream. This is not a hash
  // table of Abseil, because sanitizers change its layout, and Debian's Abseil
  // is built without them.
  std::map<uint32_t, Call> calls_;
  std::atomic<int64_t> open_calls_ = 0;  // calls_.size()
  uint32_t last_stream_ = 0;             // the highest stream that has begun
  int64_t header_block_bytes_ = -1;      // -1: no block of headers is open
  SteadyTime header_block_at_{};         // when that block began
  bool has_frame_ = false;
  bool too_many_resets_ = false;
  RateLimit resets_;
  RateLimit answered_frames_;
  SteadyTime idle_since_;
};

}  // namespace attnd::server

#endif  // ATTND_SERVER_CONNECTIONS_CONNECTION_H_
