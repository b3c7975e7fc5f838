// Divides the memory of a server, and finds the memory limit that a container
// needs for given calls.
#ifndef ATTND_COST_MEMORY_SHARES_H_
#define ATTND_COST_MEMORY_SHARES_H_

#include <cstdint>
#include <optional>

namespace attnd {

// The default of --max-message-bytes.
inline constexpr int64_t kDefaultMaxMessageBytes = int64_t{256} << 20;

// What code and threads take of the server's own share.
inline constexpr int64_t kCodeBytes = int64_t{64} << 20;

// The options of a server that the shares depend on.
struct MemoryOptions {
  int64_t budget_bytes = 0;  // --memory-budget-bytes; 0 = not set
  int64_t max_message_bytes = kDefaultMaxMessageBytes;  // --max-message-bytes
};

// How the server's memory is divided. The three shares together are all of it.
struct MemoryShares {
  // The sum of the shares, or the largest int64 if the sum does not fit.
  int64_t total_bytes() const;

  int64_t budget_bytes = 0;    // for the requests that Admission admitted
  int64_t arriving_bytes = 0;  // for messages that are not admitted yet
  int64_t own_bytes = 0;       // for code, threads and what malloc keeps
};

// Divides `available_bytes`. The server's own share is a tenth, but at least
// 256 MiB and at most a quarter. Arriving messages get a quarter, but at most
// 16 times the largest message (or 64 MiB if that is more). The budget is the
// rest.
//
// If `options` have a budget, it is not compared with `available_bytes`. The
// server's own share is then 256 MiB. Arriving messages get half as much as the
// budget, but at most 16 times the largest message, and in any case at least
// 5/4 of the largest message, because gRPC receives messages in small pieces if
// four fifths of the share are in use, and at least 64 MiB, for the buffers of
// many connections.
MemoryShares ShareMemory(const MemoryOptions& options, int64_t available_bytes);

// What calls that run at the same time need.
struct MemoryNeed {
  int64_t peak_bytes = 0;      // of all calls together
  int64_t arriving_bytes = 0;  // of all their messages together
};

// Returns whether `shares` are large enough for `need`, and for code and
// threads. Messages that arrive at the same time have to fit into four fifths
// of their share. If they take more than that of the largest share that a
// server with this `max_message_bytes` can have, that share is enough: gRPC
// then ends some of the calls if all messages arrive at the same time.
bool SharesHold(const MemoryShares& shares, const MemoryNeed& need,
                int64_t max_message_bytes);

// Returns the smallest memory limit with which a server holds `need`. It is a
// multiple of 1 MiB. Returns nullopt if no int64 is large enough.
std::optional<int64_t> SmallestMemoryLimit(const MemoryNeed& need,
                                           int64_t max_message_bytes);

}  // namespace attnd

#endif  // ATTND_COST_MEMORY_SHARES_H_
