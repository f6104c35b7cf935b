BEGIN TRANSACTION;
CREATE TABLE deployments (
	name TEXT NOT NULL, 
	revision BIGINT NOT NULL, 
	min_replicas INTEGER NOT NULL, 
	max_replicas INTEGER NOT NULL, 
	replicas INTEGER NOT NULL, 
	created_unix_s BIGINT NOT NULL, 
	seal TEXT NOT NULL, 
	PRIMARY KEY (name)
);
INSERT INTO "deployments" VALUES('d',1,1,3,2,1800000000,'811a2cf2def3b7239ce11eccf47a282f');
CREATE TABLE entries (
	name TEXT NOT NULL, 
	description TEXT NOT NULL, 
	model TEXT NOT NULL, 
	resources TEXT NOT NULL, 
	seal TEXT NOT NULL, 
	PRIMARY KEY (name)
);
INSERT INTO "entries" VALUES('m','words','{"chat_template":"{{ ''\u00fc'' }}","context_tokens":128,"engine":"openvino","engine_args_json":"{\"a\":1}","reasoning_parser":"","source":"hf://a/b","source_revision":"rev","task":"","tool_parser":"","trust_remote_code":false,"weight_format":"int8"}','{"cpus":1.0,"gpu_memory_bytes":0,"gpus":0,"memory_bytes":0}','93514e2ca5791f56f2fe77f590b6627d');
CREATE TABLE intents (
	replica_id TEXT NOT NULL, 
	deployment TEXT NOT NULL, 
	revision BIGINT NOT NULL, 
	node_id TEXT NOT NULL, 
	resources TEXT NOT NULL, 
	gpu_indices TEXT NOT NULL, 
	goal TEXT NOT NULL, 
	created FLOAT NOT NULL, 
	changed FLOAT NOT NULL, 
	address TEXT NOT NULL, 
	context_tokens BIGINT NOT NULL, 
	seal TEXT NOT NULL, 
	PRIMARY KEY (replica_id)
);
INSERT INTO "intents" VALUES('d-1-abc','d',1,'n','{"cpus":0.1,"gpu_memory_bytes":8589934592,"gpus":2,"memory_bytes":1099511627776}','[0,3]','run',1.1,2.2,'h:1',99,'1d0857ecea9d85a07886d1cedb4fd387');
CREATE TABLE meta (
	"key" TEXT NOT NULL, 
	value TEXT NOT NULL, 
	seal TEXT NOT NULL, 
	PRIMARY KEY ("key")
);
INSERT INTO "meta" VALUES('schema','1','a82ba68de8b381ae91eb985f0bce2ebc');
INSERT INTO "meta" VALUES('epoch','1795545743','7710132777f5074e74f864a0fe6d6af2');
CREATE TABLE revisions (
	deployment TEXT NOT NULL, 
	revision BIGINT NOT NULL, 
	model TEXT NOT NULL, 
	resources TEXT NOT NULL, 
	seal TEXT NOT NULL, 
	PRIMARY KEY (deployment, revision)
);
INSERT INTO "revisions" VALUES('d',1,'{"chat_template":"{{ ''\u00fc'' }}","context_tokens":128,"engine":"openvino","engine_args_json":"{\"a\":1}","reasoning_parser":"","source":"hf://a/b","source_revision":"rev","task":"","tool_parser":"","trust_remote_code":false,"weight_format":"int8"}','{"cpus":0.1,"gpu_memory_bytes":8589934592,"gpus":2,"memory_bytes":1099511627776}','ca3eed9b89e581ae8a663870556f0b38');
COMMIT;
