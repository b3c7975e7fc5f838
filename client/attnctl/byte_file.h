// Reads and writes files from front to back. It neither seeks nor asks for the
// size of a file, so the file may be a pipe or a device.
#ifndef ATTND_CLIENT_ATTNCTL_BYTE_FILE_H_
#define ATTND_CLIENT_ATTNCTL_BYTE_FILE_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace attnd::attnctl {

// An open file. Closes it when destroyed. Error messages begin with the path.
// The code of an error is absl::ErrnoToStatusCode of the system's error. Not
// thread-safe.
class ByteFile {
 public:
  // OpenToRead and OpenToWrite open `path`, unless it names a descriptor that
  // the process already has: "/dev/stdin", "/dev/stdout", "/dev/stderr" or
  // "/dev/fd/N". They use such a descriptor as it is, from its current
  // position. Opening its path would start at the beginning of the file, would
  // empty a file that is written, and would fail for a socket.
  static absl::StatusOr<ByteFile> OpenToRead(const std::string& path);
  // Creates the file, or empties it if it exists.
  static absl::StatusOr<ByteFile> OpenToWrite(const std::string& path);

  ByteFile(ByteFile&& other) noexcept;
  ByteFile& operator=(ByteFile&&) = delete;
  ~ByteFile();

  // Reads until `bytes` is full or the file ends, and returns the number of
  // bytes read. Waits for data if necessary.
  absl::StatusOr<size_t> Read(std::span<std::byte> bytes);

  // Writes all of `bytes`. Waits until the file accepts them.
  absl::Status Write(std::span<const std::byte> bytes);

  // Closes the file. Call it after the last Write and check the result, because
  // some file systems report only now that writing has failed.
  absl::Status Close();

 private:
  static absl::StatusOr<ByteFile> Open(const std::string& path, int flags);
  ByteFile(std::string path, int fd);
  absl::Status Error(absl::string_view what) const;
  // Returns whether to repeat the read or write that has just failed, according
  // to errno. If the descriptor is non-blocking, first waits until it is ready
  // for `events` of poll().
  bool ShouldRetry(int16_t events) const;

  std::string path_;
  int fd_;
};

// Returns whether `path` is the same file, pipe or device as standard output.
bool IsStandardOutput(const std::string& path);

// Returns whether a write to `b` would overwrite a write to `a`. Returns false
// for devices such as /dev/null, because they do not keep what is written.
bool IsSameFile(const std::string& a, const std::string& b);

}  // namespace attnd::attnctl

#endif  // ATTND_CLIENT_ATTNCTL_BYTE_FILE_H_
