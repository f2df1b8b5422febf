<%@ page session="false" import="java.nio.file.*, java.nio.channels.*, java.nio.*" %><%
// Appends what `add` says, on the disk before the answer; the answer is all there is.
Path file = Paths.get("/var/lib/notes/notes.txt");
String add = request.getParameter("add");
if (add != null) {
  try (FileChannel channel = FileChannel.open(file, StandardOpenOption.CREATE, StandardOpenOption.WRITE, StandardOpenOption.APPEND)) {
    channel.write(ByteBuffer.wrap((add + "\n").getBytes("UTF-8")));
    channel.force(true);
  }
}
response.setContentType("text/plain");
out.print(Files.exists(file) ? new String(Files.readAllBytes(file), "UTF-8") : "");
%>
