// Takes what gRPC and protobuf write to stderr into the log. Clients can cause
// such lines, and threads that serve calls write them.
#ifndef ATTND_SERVER_LIBRARY_LOGS_H_
#define ATTND_SERVER_LIBRARY_LOGS_H_

#include <chrono>
#include <cstdint>
#include <mutex>
#include <optional>

namespace attnd::server {

// From now on the lines of both libraries go to spdlog's default logger, cut at
// 200 bytes, and at most ten a second; the next line says how many are missing.
// A line before an abort is flushed. Call it before
// either library is used.
void TakeLibraryLogs();

// From now on they go nowhere. Called before the default logger goes, for gRPC
// has threads that live as long as the process.
void DropLibraryLogs();

// Lets so many lines of each second through and counts the others. Thread-safe.
class LineLimit {
 public:
  explicit LineLimit(int lines_per_second)
      : lines_per_second_(lines_per_second) {}

  // Nothing where a line of the time `now` is to be left out. Otherwise how
  // many were left out since the last that was not.
  std::optional<int64_t> Admit(std::chrono::steady_clock::time_point now);

 private:
  const int lines_per_second_;
  std::mutex mutex_;
  std::chrono::steady_clock::time_point second_begin_;
  int lines_ = 0;  // of this second
  int64_t left_out_ = 0;
};

}  // namespace attnd::server

#endif  // ATTND_SERVER_LIBRARY_LOGS_H_
