// Redirects what gRPC and protobuf would write to stderr to attnd's log. The
// log limits the number of lines, because clients can cause them, and it does
// not make the threads that serve calls wait for stderr.
#ifndef ATTND_SERVER_PROCESS_LIBRARY_LOGS_H_
#define ATTND_SERVER_PROCESS_LIBRARY_LOGS_H_

#include <chrono>
#include <cstdint>
#include <mutex>
#include <optional>

namespace attnd::server {

// Sends the lines of both libraries to spdlog's default logger from now on.
// Call it before either library is used. A line has at most 200 bytes. At most
// ten lines a second are logged, and the next one after that says how many were
// left out. If a library aborts the process, its last line is logged in full
// and flushed.
void RedirectLibraryLogs();

// Drops the lines of both libraries from now on. Call it before the default
// logger is destroyed, because some threads of gRPC live as long as the
// process.
void DropLibraryLogs();

// Admits a number of lines each second and counts the others. Thread-safe.
class LineLimit {
 public:
  explicit LineLimit(int lines_per_second)
      : lines_per_second_(lines_per_second) {}

  // Call this for each line. Returns nullopt if the line has to be left out.
  // Otherwise returns how many lines were left out since the last admitted one.
  std::optional<int64_t> Admit(std::chrono::steady_clock::time_point now);

 private:
  const int lines_per_second_;
  std::mutex mutex_;
  std::chrono::steady_clock::time_point second_begin_;
  int lines_ = 0;  // admitted in this second
  int64_t left_out_ = 0;
};

}  // namespace attnd::server

#endif  // ATTND_SERVER_PROCESS_LIBRARY_LOGS_H_
