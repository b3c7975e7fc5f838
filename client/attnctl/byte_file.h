// Reads and writes files from their front to their end. It never seeks and
// never asks for a size, so the file may be a pipe or a device.
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

// Errors begin with the path, and have the code of the system's error.
class ByteFile {
 public:
  // "/dev/stdin", "/dev/stdout", "/dev/stderr" and "/dev/fd/N" are read and
  // written through the descriptor that the process has, from its current
  // position. Opening such a path would start at the beginning of the file,
  // empty it when writing, and fail on a socket.
  static absl::StatusOr<ByteFile> OpenToRead(const std::string& path);
  // Creates the file, or empties it.
  static absl::StatusOr<ByteFile> OpenToWrite(const std::string& path);

  ByteFile(ByteFile&& other) noexcept;
  ByteFile& operator=(ByteFile&&) = delete;
  ~ByteFile();

  // Waits until `bytes` is full or the file has ended, and returns how many
  // bytes came.
  absl::StatusOr<size_t> Read(std::span<std::byte> bytes);

  // Waits until all of `bytes` is written.
  absl::Status Write(std::span<const std::byte> bytes);

  // Some file systems report only here that writing has failed.
  absl::Status Close();

 private:
  static absl::StatusOr<ByteFile> Open(const std::string& path, int flags);
  ByteFile(std::string path, int fd);
  absl::Status Error(absl::string_view what) const;
  // Whether the read or write that has just failed is to be tried again. Where
  // the descriptor is non-blocking, waits until it is ready.
  bool Again(int16_t events) const;

  std::string path_;
  int fd_;
};

// Whether what is written to `path` comes out of standard output.
bool IsStandardOutput(const std::string& path);

// Whether what is written to `a` would be overwritten by what is written to
// `b`. Devices such as /dev/null keep nothing, so nothing is overwritten there.
bool IsSameFile(const std::string& a, const std::string& b);

}  // namespace attnd::attnctl

#endif  // ATTND_CLIENT_ATTNCTL_BYTE_FILE_H_
