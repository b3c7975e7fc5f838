// Sends what gRPC and protobuf would write to stderr to the log instead.
// Clients can cause such lines, and threads that serve calls write them.
#ifndef ATTND_SERVER_PROCESS_LIBRARY_LOGS_H_
#define ATTND_SERVER_PROCESS_LIBRARY_LOGS_H_

#include <chrono>
#include <cstdint>
#include <mutex>
#include <optional>

namespace attnd::server {

// Makes the lines of both libraries go to spdlog's default logger. Call it
// before either library is used. Lines are cut after 200 bytes, and at most ten
// a second are logged; the next one after that says how many were left out. A
// line before an abort is logged in full and flushed.
void TakeLibraryLogs();

// Drops the lines of both libraries from now on. Call it before the default
// logger is destroyed, because some threads of gRPC live as long as the
// process.
void DropLibraryLogs();

// Admits a number of lines each second and counts the others. Thread-safe.
class LineLimit {
 public:
  explicit LineLimit(int lines_per_second)
      : lines_per_second_(lines_per_second) {}

  // Call it for each line. Returns nothing if the line has to be left out.
  // Otherwise returns how many were left out since the last admitted line.
  std::optional<int64_t> Admit(std::chrono::steady_clock::time_point now);

 private:
  const int lines_per_second_;
  std::mutex mutex_;
  std::chrono::steady_clock::time_point second_begin_;
  int lines_ = 0;  // of this second
  int64_t left_out_ = 0;
};

}  // namespace attnd::server

#endif  // ATTND_SERVER_PROCESS_LIBRARY_LOGS_H_
